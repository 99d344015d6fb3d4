"""ditcache-opt from the outside: one clear line for everything that it refuses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model given; --list names those of the zoo"),
        (["flux-deb"], "no architecture 'flux-deb'; did you mean 'flux-dev'?"),
        (["flux-dev", "--height", "1001"], "flux-dev cannot take 1001x1024"),
        (["toy_factory:make", "--height", "64"], "--height apply to models of the zoo only"),
        (["toy_factory:make", "--passes", "normalise"], "--passes: no pass 'normalise'; there are"),
        (["toy_factory:make", "--stop-after", "x"], "--stop-after: no pass 'x'; there are"),
        (["toy_factory:make", "--print-after", "x"], "--print-after: no pass 'x'; there are"),
        (
            ["toy_factory:make", "--passes", "normalize", "--stop-after", "cleanup"],
            "--stop-after cleanup: that pass is not among --passes normalize",
        ),
        (["toy_factory:make", "--passes", "dependence"], "dependence requires classified"),
        (["toy_factory:make", "--frob"], "No such option: --frob (--help lists all options)"),
        (["toy_factory:make", "--emit", "pdf"], "'pdf' is not one of 'text', 'json', 'dot'"),
        (["toy_factory:make", "--height", "tall"], "Invalid value for '--height'"),
        (
            ["toy_factory:make", "--height", "0"],
            "--height 0: expected a whole number",
        ),
        (["toy_factory:make", "--slot-budget", "-1"], "--slot-budget -1: expected a whole number"),
        (["toy_factory:make", "--stats", "--stop-after", "normalize"], "--stats needs regions"),
        (["toy_factory:make", "-o", "no/such/ir.txt"], "cannot write no/such/ir.txt"),
        (["toy_factory:make", "-o", "."], "cannot write ."),
        (["toy_factory:nothing"], "module toy_factory has no 'nothing'"),
        (["no_such_module:make"], "importing no_such_module failed (ModuleNotFoundError"),
        (["toy_factory:raises"], "the factory failed (RuntimeError: no such thing)"),
        (["toy_factory:gives_nonsense"], "the factory gave a int; expected (module, kwargs)"),
        (["toy_factory:wrong_shape"], "the forward call failed while it was traced"),
        (["toy_factory:graph_break"], "does not trace into one graph"),
        (["missing.pt2"], "missing.pt2: no such file; expected what torch.export.save wrote"),
        (["junk.pt2"], "junk.pt2: not an exported program"),
        (["toy_factory:make", "--plan", "none.json"], "none.json: no such plan file"),
        (["toy_factory:make", "--plan", "junk.pt2"], "junk.pt2: cut short or not JSON"),
        (["toy_factory:make", "--profile", "none"], "none"),
        (["toy_factory:make", "--policy", "magic"], "no policy 'magic'; there are edf, reuse"),
        (["toy_factory:make", "--policy", "edf"], "policy 'edf' needs measurements"),
        (["toy_factory:make", "--policy", "reuse", "--speedup", "0.5"], "speedup must be"),
        (["toy_factory:make", "--policy", "reuse", "--steps", "1"], "a plan needs at least 2"),
        (["toy_factory:make", "--policy", "reuse", "--region", "x"], "no region 'x'; this graph"),
        (
            ["toy_factory:make", "--policy", "reuse", "--slot-budget", "10"],
            "slots need 1024 bytes, the budget is 10",
        ),
        (["toy_factory:make", "--plan", "p", "--policy", "reuse"], "both give a plan; use one"),
        (["toy_factory:make", "--speedup", "3"], "--speedup says how --policy makes a plan"),
        (["toy_factory:make", "--policy", "fora", "--speedup", "3"], "does not apply to policy"),
        (["toy_factory:make", "--policy", "fora:pace=2"], "policy 'fora' has no option 'pace'"),
        (["toy_factory:make", "--policy", "reuse:k=2"], "policy 'reuse' has no option 'k', only"),
        (["toy_factory:make", "--slot-format", "int4"], "no 'int4'; there are bf16, fp16"),
    ],
)
def test_refuses_with_one_line(cli, tmp_path, arguments, message):
    (tmp_path / "junk.pt2").write_text("not an archive")
    code, out, err = cli(*arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("ditcache-opt: ")
    assert err.count("\n") == 1


def test_torchs_own_log_adds_no_line(tmp_path):
    (tmp_path / "junk.pt2").write_text("no export")
    command = [sys.executable, "-m", "ditcache.passes.opt", "junk.pt2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("ditcache-opt: junk.pt2: not an exported program")
    assert done.stderr.count("\n") == 1


def test_refuses_a_plan_for_another_model(cli, plan):
    code, out, err = cli("toy_factory:other", "--plan", "plan.json")
    assert (code, out) == (2, "")
    assert "the plan is for another model (its signature is " in err
    assert err.count("\n") == 1


def test_a_broken_rule_names_itself_and_exits_1(cli, monkeypatch):
    from ditcache.passes.specialize import Specialize

    original = Specialize.apply

    def twice(self, graph, ctx):
        import dataclasses

        result = original(self, graph, ctx)
        first, *rest = result.graph.variants
        worse = dataclasses.replace(first, writes=first.writes * 2)
        changed = result.graph.with_(variants=(worse, *rest))
        return dataclasses.replace(result, graph=changed)

    monkeypatch.setattr(Specialize, "apply", twice)
    code, _, err = cli("toy_factory:make", "--policy", "reuse")
    assert code == 1
    assert "V4 (one writer per slot per step) broken after pass 'specialize'" in err
    assert "reproduce: ditcache-opt toy_factory:make --verify-each --stop-after specialize" in err


@pytest.mark.slow
def test_a_closed_pipe_is_quiet(tmp_path):
    shutil.copy(Path(__file__).with_name("toy_factory.py"), tmp_path)
    command = f"{sys.executable} -m ditcache.passes.opt toy_factory:make --print-after all"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} 2>err | head -c 10"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert "BrokenPipe" not in (tmp_path / "err").read_text()


def test_what_can_be_wrong_is_looked_at_before_the_model_is_traced(cli):
    _, _, err = cli("toy_factory:raises", "--policy", "magic")
    assert "no policy 'magic'" in err
    _, _, err = cli("toy_factory:raises", "--policy", "reuse", "--speedup", "40")
    assert "speedup 40 is out of reach on 50 steps" in err
