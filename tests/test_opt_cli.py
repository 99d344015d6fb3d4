"""ditcache-opt from the outside: what it prints, and one clear line for everything it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest
import torch
from ditcache.passes import opt, pipeline
from ditcache.passes.plan_format import Plan
from ditcache.passes.profile import Profile, RegionProfile

FACTORY = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.attn = nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
    def forward(self, x, emb):
        x = x + self.attn(self.norm(x)) * emb[:, None]
        return x + self.mlp(self.norm(x))

class Net(nn.Module):
    def __init__(self, depth=2):
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
    def forward(self, hidden_states, timestep):
        emb = self.time(timestep[:, None])
        for block in self.blocks:
            hidden_states = block(hidden_states, emb)
        return hidden_states

class Breaks(nn.Module):
    def forward(self, x):
        print("a graph break")
        return x + 1

def make(depth=2):
    inputs = torch.randn(2, 16, 8), torch.tensor([5.0, 5.0])
    return Net(depth).eval(), inputs, {}

def by_name():
    module, (x, t), _ = make()
    return module, {"hidden_states": x, "timestep": t}

def other():
    return make(3)

def raises():
    raise RuntimeError("no such thing\\nwith a second line")

def gives_nonsense():
    return 3

def wrong_shape():
    return Net().eval(), (torch.randn(2, 16, 5), torch.tensor([5.0, 5.0])), {}

def graph_break():
    return Breaks(), (torch.randn(2, 2),), {}
"""


@pytest.fixture
def cli(tmp_path, monkeypatch, capsys):
    """Run a command line in a folder with a factory; gives exit code, stdout and stderr."""
    (tmp_path / "toy_factory.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "toy_factory", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            opt.main(list(arguments))
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run


# What it prints ------------------------------------------------------------------------------


def test_the_final_ir_goes_to_stdout(cli):
    code, out, err = cli("toy_factory:make")
    assert code == 0
    assert err == ""
    assert out.startswith("// ditcache-opt: after cleanup")
    assert "graph @toy_factory:make(" in out
    assert "variant 0 (compute)" in out


def test_a_factory_may_give_keyword_arguments(cli):
    assert cli("toy_factory:by_name", "--stop-after", "normalize")[0] == 0


def test_dumps_go_to_stderr(cli):
    code, out, err = cli(
        "toy_factory:make", "--print-before", "dependence", "--print-after", "all", "--stop-after",
        "form-regions",
    )  # fmt: skip
    assert code == 0
    assert re.findall(r"^// ditcache-opt: (\w+ [\w-]+)", err, re.M) == [
        "after normalize",
        "after classify-inputs",
        "before dependence",
        "after dependence",
        "after form-regions",
    ]
    assert out.startswith("// ditcache-opt: after form-regions")
    before = err[err.index("before dependence") : err.index("after dependence")]
    assert "[step]" not in before
    assert "[step]" in err[err.index("after dependence") :]


def test_print_after_change_skips_passes_that_did_nothing(cli):
    _, _, err = cli("toy_factory:make", "--print-after-change")
    assert "after form-regions" in err
    assert "after plan" not in err


def test_passes_can_be_chosen(cli):
    code, out, _ = cli("toy_factory:make", "--passes", "normalize,classify-inputs")
    assert code == 0
    assert "after classify-inputs" in out
    assert "region" not in out


def test_stats_tell_what_changes_with_what(cli):
    code, out, _ = cli("toy_factory:make", "--stats")
    assert code == 0
    assert re.search(r"TFLOP a step \(\d+\.?\d* kMAC\)", out)
    for line in ("nothing (const)", "the prompt (condition)", "the timestep (step)"):
        assert line in out
    assert re.search(r"^blocks\.0\.mlp +branch +8\.19 kMAC", out, re.M)
    assert "graph @" not in out


def test_stats_before_an_emitted_form(cli):
    _, out, _ = cli("toy_factory:make", "--stats", "--emit", "text")
    assert out.index("TFLOP") < out.index("graph @")


def test_times_and_statistics(cli):
    _, _, err = cli("toy_factory:make", "--time-passes", "--pass-statistics")
    for name in pipeline.BY_NAME:
        assert re.search(rf"^{name} +\d+\.\d{{3}} +\d", err, re.M), name
        assert f"\n{name}: " in err
    assert "form-regions: denoiser regions: 1, block regions: 2" in err


def test_a_made_up_plan_shows_the_rewriting_half(cli):
    code, out, _ = cli(
        "toy_factory:make", "--policy", "taylor-1", "--speedup", "2", "--steps", "8",
        "--region", "blocks.0,blocks.1", "--verify-each",
    )  # fmt: skip
    assert code == 0
    assert "scheduled C.C.C.C." in out
    assert "slot $blocks.0 : f32[2,16,8] x2" in out
    assert "variant 1 (blocks.0: forecast, blocks.1: forecast)" in out


def test_packed_slots_are_shown_with_their_bytes(cli):
    made = ("toy_factory:make", "--policy", "taylor-1", "--slot-format")
    code, out, _ = cli(*made, "int8", "--stats", "--emit", "text", "--stop-after", "insert-cache")
    assert code == 0
    assert "slots: 1, 528 B in int8" in out
    assert "slot $denoiser : f32[2,16,8] x2  0.5 KiB  // stored as int8" in out
    code, _, err = cli(*made, "int4")
    assert (code, err.count("\n")) == (2, 1)
    assert "no storage format 'int4'; there are bf16, fp16, fp8_e4m3, int8" in err


def test_a_dynamic_trace(cli):
    _, out, _ = cli("toy_factory:make", "--dynamic", "--policy", "reuse")
    assert re.search(r"%hidden_states: f32\[s\d+,s\d+,8\] latents", out)


def test_a_plan_file(cli, tmp_path):
    _, out, _ = cli("toy_factory:make", "--policy", "reuse", "--emit", "json")
    assert json.loads(out)["scheduled"] == ["denoiser"]
    _plan(tmp_path / "plan.json", cli)
    code, out, _ = cli("toy_factory:make", "--plan", "plan.json")
    assert code == 0
    assert "scheduled C.C." in out


def _signature() -> str:
    from ditcache.passes.base import PassContext
    from ditcache.passes.opt_load import load
    from ditcache.passes.signature import model_signature

    graph, _ = pipeline.run(load("toy_factory:make", {}), pipeline.DEFAULT[:2], PassContext())
    return model_signature(graph)


def _plan(path, cli, signature=None):
    from ditcache.passes.plan_format import RegionSchedule

    rows = ((0.0,), (1.0,), (0.0,), (1.0,))
    schedule = RegionSchedule("denoiser", (0, 2), rows, 1, "reuse", "uniform")
    Plan(signature or _signature(), (4.0, 3.0, 2.0, 1.0), (schedule,), "reuse").save(path)


def test_a_profile_gives_drift_and_a_plan(cli, tmp_path):
    grid = tuple(float(10 - i) for i in range(10))
    outputs = torch.stack([torch.tensor([1.0, 0.02 * i]) for i in range(10)]).double().numpy()
    gram = (outputs @ outputs.T / 2)[None, None]
    region = RegionProfile("denoiser", gram, (2, 16, 8), "float32")
    Profile(_signature(), grid, ("",), 1, (region,)).save(tmp_path / "p.profile")
    code, out, _ = cli("toy_factory:make", "--profile", "p.profile", "--policy", "edf", "--stats")
    assert code == 0
    assert re.search(r"^denoiser .*stable d=0\.0\d\d$", out, re.M)
    code, _, err = cli("toy_factory:other", "--profile", "p.profile")
    assert (code, err.count("\n")) == (2, 1)
    assert "the profile is for another model" in err


@pytest.mark.parametrize("through", ["analysis", "all"])
def test_json_is_complete(cli, through):
    stop = ("--stop-after", "tag-stability") if through == "analysis" else ("--policy", "reuse")
    _, out, _ = cli("toy_factory:make", "--emit", "json", *stop)
    found = json.loads(out)
    assert found["format"] == "ditcache.opt"
    assert {i["kind"] for i in found["inputs"]} >= {"latents", "parameter"}
    assert found["totals"]["step"]["weight_bytes"] == 64
    assert found["regions"][0]["name"] == "denoiser"
    assert found["passes"]["form-regions"]["block regions"] == 2
    if through == "all":
        assert found["slots"][0] == {
            "name": "denoiser", "region": "denoiser", "value": found["slots"][0]["value"],
            "type": "f32[2,16,8]", "history": 1, "format": None, "bytes": 1024,
        }  # fmt: skip
        assert [v["forecast"] for v in found["variants"]] == [[], ["denoiser"]]
        assert found["prologues"][0]["name"] == "step"


def test_dot_has_a_cluster_for_each_block(cli):
    _, out, _ = cli("toy_factory:make", "--emit", "dot")
    assert out.startswith('digraph "toy_factory:make" {')
    assert out.count("subgraph cluster_") == 2
    assert out.count("{") == out.count("}")
    assert '"blocks.0 rest" -> "blocks.0.mlp";' in out
    assert '-> "return";' in out


def test_html_stands_alone(cli):
    _, out, _ = cli("toy_factory:make", "--emit", "html", "--policy", "reuse")

    class Tags(HTMLParser):
        def __init__(self):
            super().__init__()
            self.open, self.seen = [], []

        def handle_starttag(self, tag, attrs):
            self.seen.append(tag)
            if tag != "meta":
                self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    page = Tags()
    page.feed(out)
    assert page.open == []
    assert page.seen.count("details") >= 4
    assert "http" not in out
    assert "script" not in page.seen
    assert "blocks.0.mlp" in out


def test_python_is_the_code_of_the_variants(cli):
    _, out, _ = cli("toy_factory:make", "--emit", "python", "--policy", "reuse")
    assert "# prologue step" in out
    assert "# variant 0 (denoiser: compute)" in out
    compile(out, "variants", "exec")


def test_output_to_a_file(cli, tmp_path):
    code, out, _ = cli("toy_factory:make", "-o", "ir.txt", "--emit", "text")
    assert (code, out) == (0, "")
    assert (tmp_path / "ir.txt").read_text().startswith("// ditcache-opt")


def test_an_exported_program_has_the_same_regions_and_signature(cli, tmp_path):
    import toy_factory  # pyright: ignore[reportMissingImports]

    sys.path.insert(0, str(tmp_path))
    module, args, _ = toy_factory.make()
    torch.export.save(torch.export.export(module, args), "toy.pt2")
    _plan(tmp_path / "plan.json", cli)
    code, out, _ = cli("toy.pt2", "--plan", "plan.json", "--emit", "json", "--verify-each")
    assert code == 0
    exported = json.loads(out)
    traced = json.loads(cli("toy_factory:make", "--plan", "plan.json", "--emit", "json")[1])
    keys = ("name", "kind", "macs", "weight_bytes", "live_bytes")
    assert [{k: r[k] for k in keys} for r in exported["regions"]] == [
        {k: r[k] for k in keys} for r in traced["regions"]
    ]
    assert exported["totals"]["step"]["macs"] == traced["totals"]["step"]["macs"]


@pytest.fixture(autouse=True)
def importable(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))


def test_lists(cli):
    from ditcache.models import zoo

    assert cli("--list")[1].split() == zoo.names()
    assert cli("--list-passes")[1].split() == list(pipeline.BY_NAME)


@pytest.mark.slow
def test_a_model_of_the_zoo_needs_no_weights(cli):
    pytest.importorskip("diffusers")
    code, out, _ = cli("dit-xl-2", "--height", "128", "--width", "128", "--stats")
    assert code == 0
    assert re.search(r"^blocks\.\d+ |^transformer_blocks\.27 ", out, re.M)


# What it refuses -----------------------------------------------------------------------------


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


def test_refuses_a_plan_for_another_model(cli, tmp_path):
    _plan(tmp_path / "plan.json", cli)
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
    (tmp_path / "toy_factory.py").write_text(FACTORY)
    command = f"{sys.executable} -m ditcache.passes.opt toy_factory:make --print-after all"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command} 2>err | head -c 10"],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert "BrokenPipe" not in (tmp_path / "err").read_text()
