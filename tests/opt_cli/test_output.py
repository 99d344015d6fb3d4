"""ditcache-opt from the outside: what it prints."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from ditcache.passes import pipeline
from ditcache.passes.profile import Profile, RegionProfile


def test_the_final_ir_goes_to_stdout(cli):
    code, out, err = cli("toy_factory:make")
    assert code == 0
    assert err == ""
    assert out.startswith("// ditcache-opt: after cleanup")
    assert "graph @toy_factory:make(" in out
    assert "variant 0 (compute)" in out


def test_modules_of_the_current_folder_are_found(cli, tmp_path):
    source = Path(__file__).with_name("toy_factory.py").read_text()
    (tmp_path / "factory_of_mine.py").write_text(source)
    assert cli("factory_of_mine:make", "--stop-after", "normalize")[0] == 0


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


def test_stats_come_before_the_emitted_form(cli):
    _, out, _ = cli("toy_factory:make", "--stats", "--emit", "text")
    assert out.index("TFLOP") < out.index("graph @")


def test_times_and_statistics_name_every_pass(cli):
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


def test_a_dynamic_trace_has_symbolic_sizes(cli):
    _, out, _ = cli("toy_factory:make", "--dynamic", "--policy", "reuse")
    assert re.search(r"%hidden_states: f32\[s\d+,s\d+,8\] latents", out)


def test_a_plan_from_a_file_is_inserted(cli, plan):
    code, out, _ = cli("toy_factory:make", "--plan", "plan.json")
    assert code == 0
    assert "scheduled C.C." in out


def test_a_profile_gives_drift_and_a_plan(cli, tmp_path, signature):
    grid = tuple(float(10 - i) for i in range(10))
    outputs = torch.stack([torch.tensor([1.0, 0.02 * i]) for i in range(10)]).double().numpy()
    gram = (outputs @ outputs.T / 2)[None, None]
    region = RegionProfile("denoiser", gram, (2, 16, 8), "float32")
    Profile(signature, grid, ("",), 1, (region,)).save(tmp_path / "p.profile")
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
    assert found["scheduled"] == ([] if through == "analysis" else ["denoiser"])
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


def test_output_goes_to_a_file_alone(cli, tmp_path):
    code, out, _ = cli("toy_factory:make", "-o", "ir.txt", "--emit", "text")
    assert (code, out) == (0, "")
    assert (tmp_path / "ir.txt").read_text().startswith("// ditcache-opt")


def test_an_exported_program_has_the_same_regions_and_signature(cli, plan):
    import toy_factory  # pyright: ignore[reportMissingImports]

    module, args, _ = toy_factory.make()
    torch.export.save(torch.export.export(module, args), "toy.pt2")
    code, out, _ = cli("toy.pt2", "--plan", "plan.json", "--emit", "json", "--verify-each")
    assert code == 0
    exported = json.loads(out)
    traced = json.loads(cli("toy_factory:make", "--plan", "plan.json", "--emit", "json")[1])
    keys = ("name", "kind", "macs", "weight_bytes", "live_bytes")
    assert [{k: r[k] for k in keys} for r in exported["regions"]] == [
        {k: r[k] for k in keys} for r in traced["regions"]
    ]
    assert exported["totals"]["step"]["macs"] == traced["totals"]["step"]["macs"]


def test_the_lists_name_every_model_and_pass(cli):
    from ditcache.models import zoo

    assert cli("--list")[1].split() == zoo.names()
    assert cli("--list-passes")[1].split() == list(pipeline.BY_NAME)


@pytest.mark.slow
def test_a_model_of_the_zoo_needs_no_weights(cli):
    pytest.importorskip("diffusers")
    code, out, _ = cli("dit-xl-2", "--height", "128", "--width", "128", "--stats")
    assert code == 0
    assert re.search(r"^blocks\.\d+ |^transformer_blocks\.27 ", out, re.M)


PAGE = Path(__file__).parents[2] / "docs" / "ditcache-opt.md"


def test_the_help_is_in_the_documentation(cli):
    code, out, _ = cli("--help")
    assert code == 0
    assert f"```\n{out.strip()}\n```" in PAGE.read_text()


@pytest.mark.slow
def test_the_example_in_the_documentation_is_what_is_printed(cli):
    pytest.importorskip("diffusers")
    command, example = re.findall(
        r"```\nditcache-opt (flux-emoji .*)\n```\n\n```\n(.*?)```", PAGE.read_text(), re.S
    )[0]
    code, out, _ = cli(*command.split())
    assert code == 0
    printed = iter(out.splitlines())
    for line in example.splitlines():  # in this order; … stands for anything
        pattern = re.compile(".*".join(map(re.escape, line.split("…"))))
        assert line.strip() == "…" or any(pattern.fullmatch(p) for p in printed), line
