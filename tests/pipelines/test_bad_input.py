"""What is no generation, or changes under way: computed in full or refused, in one clear line."""

from __future__ import annotations

from itertools import pairwise

import ditcache
import pytest
import torch

from . import tiny_pipelines as tiny
from .observing import error, in_full, planned, same, watched


@pytest.fixture
def model():
    """A compiled denoiser under a plan, and that plan."""
    pipeline = tiny.flux()
    return planned(pipeline, true_cfg_scale=1.0)


def call(made, t, seed=0, scale=1.0):
    inputs = tiny.flux_inputs(float(t) / 1000, seed=seed)
    inputs["hidden_states"] = inputs["hidden_states"] * scale
    return tuple(m(**inputs, return_dict=False)[0] for m in (made, made._orig_mod))


def grid(plan):
    return [1000 * t for t in plan.timesteps]


def test_timesteps_that_go_back_and_forth(model):
    made, plan = model
    times = grid(plan)
    for i, j in enumerate((0, 3, 1, 5, 2, 6, 4)):
        with watched(made) as calls:
            ours, theirs = call(made, times[j], scale=1 - i / 50)
        assert calls.computed == [True]
        same(ours, theirs)


def test_timesteps_that_no_plan_knows_are_computed_and_said_once(model, caplog):
    made, plan = model
    times = [(a + b) / 2 for a, b in pairwise([*grid(plan), 0.0])]
    for i, t in enumerate(times):
        ours, theirs = call(made, t, scale=1 - i / 50)
        same(ours, theirs)
    assert ditcache.summary(made).fallbacks == {"unknown step": 8}
    assert caplog.text.count("is on no plan's grid") == 1


def test_a_step_that_is_left_out(model):
    """From there on nothing is forecast that lacks the steps it was solved for."""
    made, plan = model
    computed = plan.regions[0].computed
    left_out = computed[1]
    for i, t in enumerate(grid(plan)):
        if i == left_out:
            continue
        ours, theirs = call(made, t, scale=1 - i / 50)
        if i > left_out:
            same(ours, theirs)


@pytest.mark.parametrize("t", [float("nan"), float("inf")])
def test_a_timestep_that_is_no_number(model, t):
    made, _ = model
    for _ in range(3):
        ours, theirs = call(made, t)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_a_model_that_is_no_denoiser(caplog):
    """An autoencoder has neither time nor latents that come back: compiled, never cached."""
    made = torch.compile(tiny.autoencoder(), backend="ditcache", options={"inner": "eager"})
    for seed in range(3):
        image = tiny.picture(seed)
        same(made(image).sample, made._orig_mod(image).sample)
    summary = ditcache.summary(made)
    assert summary.forecast == 0
    assert summary.uncached or summary.fallbacks == {"no timestep": 3}
    assert len([r for r in caplog.records if r.name == "ditcache"]) == 1


def test_the_text_encoder_is_left_alone():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=8,
    )  # fmt: skip
    encoder = transformers.CLIPTextModel(config).eval()
    made = torch.compile(encoder, backend="ditcache", options={"inner": "eager"})
    for first in range(3):
        ids = torch.tensor([[first, 2, 3, 49]])
        same(made(ids)[0], encoder(ids)[0])


def test_batch_size_changed_in_mid_generation(model):
    made, plan = model
    for i, t in enumerate(grid(plan)):
        inputs = tiny.flux_inputs(t / 1000)
        if i >= 4:
            inputs = {
                k: v if k.endswith("ids") else torch.cat([v, v.flip(-1)]) for k, v in inputs.items()
            }
        inputs["hidden_states"] = inputs["hidden_states"] * (1 - i / 50)
        ours, theirs = (m(**inputs, return_dict=False)[0] for m in (made, made._orig_mod))
        if i == 4:
            same(ours, theirs)
        assert error(ours, theirs) < 0.2


def test_a_plan_made_at_another_guidance_scale(caplog):
    """Noticed at the first step that tells; beyond twice the scale it is computed in full."""
    pipeline = tiny.flux()
    made, plan = planned(pipeline, true_cfg_scale=2.0)
    with watched(made) as calls:
        tiny.generate(pipeline, 1, true_cfg_scale=3.0)
    assert calls.total == 2 * plan.computed_steps
    assert "guidance" not in caplog.text
    ours = tiny.generate(pipeline, 1, true_cfg_scale=9.0)
    assert caplog.text.count("made at guidance 2") == 1
    plain = made._orig_mod
    pipeline.transformer = plain
    assert error(ours, tiny.generate(pipeline, 1, true_cfg_scale=9.0)) < 0.02
    pipeline.transformer = made
    assert ditcache.summary(made).fallbacks["another guidance scale"] > 0


def test_options_that_clash_are_refused():
    """torch.compile itself refuses mode with options; ditcache names what it does not know."""
    model = tiny.flux_transformer()
    with pytest.raises(RuntimeError, match="mode"):
        torch.compile(model, backend="ditcache", mode="max-autotune", options={"inner": "eager"})
    made = torch.compile(model, backend="ditcache", options={"speedup": 2.0, "max_error": 0.1})
    with pytest.raises(Exception, match="exclude each other"):
        made(**tiny.flux_inputs())


def test_mode_by_itself_is_refused():
    """`mode="reduce-overhead"` alone reaches every backend as an argument."""
    model = tiny.flux_transformer()
    made = torch.compile(model, backend="ditcache", mode="reduce-overhead")
    with pytest.raises(Exception, match="mode"):
        made(**tiny.flux_inputs())


def test_a_plan_file_for_another_model(tmp_path, caplog):
    pipeline = tiny.flux()
    _, plan = planned(pipeline)
    plan.save(tmp_path / "flux.plan.json")
    other = tiny.sd3()
    other.transformer = torch.compile(
        other.transformer,
        backend="ditcache",
        options={"inner": "eager", "plan": str(tmp_path / "flux.plan.json")},
    )
    in_full(other, 8, seed=0)
    assert caplog.text.count("a plan for another model") == 1
