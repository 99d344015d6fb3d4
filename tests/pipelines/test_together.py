"""What people combine the denoiser with: it works, or says in one line why it does not."""

from __future__ import annotations

import copy
import pickle

import diffusers
import ditcache
import pytest
import torch
from diffusers.models import attention_dispatch

from . import tiny_pipelines as tiny
from .observing import (
    compiled,
    error,
    follows,
    in_full,
    own_plan,
    planned,
    same,
    steps_of,
    uncached,
    watched,
)

pytestmark = pytest.mark.usefixtures("nothing_before")


def test_vae_tiling_and_slicing_leave_the_plan_alone():
    pipeline = tiny.flux()
    _, plan = planned(pipeline)
    pipeline.vae.enable_tiling()
    pipeline.vae.enable_slicing()
    with watched(pipeline.transformer) as calls:
        ours = tiny.generate(pipeline, 1, output_type="pt")
    assert calls.computed == steps_of(plan, 2)
    pipeline.vae.disable_tiling()
    assert error(ours, tiny.generate(pipeline, 1, output_type="pt")) < 0.05


def test_the_plan_goes_on_with_another_attention_backend(monkeypatch):
    """Set at any time: Dynamo traces the step again, and the plan goes on."""
    registry = attention_dispatch._AttentionBackendRegistry  # resetting a model leaves it changed
    monkeypatch.setattr(registry, "_active_backend", registry._active_backend)
    pipeline = tiny.flux()
    made, plan = planned(pipeline)
    made._orig_mod.set_attention_backend("_native_math")
    follows(pipeline, plan, branches=2, seed=1)
    ditcache.remove(made)
    in_full(pipeline, 16, seed=1)
    ditcache.apply(made, plan)
    made._orig_mod.reset_attention_backend()
    follows(pipeline, plan, branches=2, seed=1)


def test_fused_projections_are_planned():
    pipeline = tiny.flux()
    pipeline.transformer.fuse_qkv_projections()
    _, plan = planned(pipeline)
    follows(pipeline, plan, branches=2, seed=1)


def test_each_size_of_a_dynamic_graph_has_its_plan():
    """`dynamic=True`: one graph for several sizes; each size has its own plan."""
    pipeline = tiny.flux()
    made = torch.compile(
        pipeline.transformer,
        backend="ditcache",
        dynamic=True,
        options={"inner": "eager", "remember": False, "profile_generations": 1},
    )
    pipeline.transformer = made
    for side in (16, 24):
        how = {"height": side, "width": side}
        ours = tiny.generate(pipeline, 0, **how)
        torch.testing.assert_close(ours, uncached(pipeline, seed=0, **how), rtol=1e-5, atol=1e-5)
        plan = own_plan(made)
        follows(pipeline, plan, branches=2, seed=1, **how)


def test_blocks_compiled_by_themselves_are_explained(caplog):
    """`compile_repeated_blocks` hands the backend blocks, where a step cannot be seen."""
    pipeline = tiny.flux()
    expected = tiny.generate(pipeline, 0)
    pipeline.transformer.compile_repeated_blocks(backend="ditcache", options={"inner": "eager"})
    for _ in range(3):
        same(tiny.generate(pipeline, 0), expected)
    assert "compile the whole denoiser" in caplog.text


CACHES = {
    "FirstBlockCacheConfig": {},
    "TaylorSeerCacheConfig": {},
    "MagCacheConfig": {"num_inference_steps": 8, "mag_ratios": torch.ones(8)},
    "TextKVCacheConfig": {},
}


@pytest.mark.parametrize("config", CACHES)
def test_diffusers_own_cache_is_refused(config, caplog):
    """Two caches at once would skip steps of one another: ditcache stands back and says so."""
    pipeline = tiny.flux()
    pipeline.transformer.enable_cache(getattr(diffusers, config)(**CACHES[config]))
    made = compiled(pipeline, profile_generations=1)
    for seed in range(3):
        tiny.generate(pipeline, seed)
    assert ditcache.summary(made).forecast == 0
    assert caplog.text.count("disable_cache()") == 1


def test_diffusers_cache_enabled_under_a_plan_and_disabled_again():
    pipeline = tiny.flux()
    made, plan = planned(pipeline)
    made._orig_mod.enable_cache(diffusers.FirstBlockCacheConfig(threshold=0.0))
    with watched(made) as calls:
        tiny.generate(pipeline, 1)
    assert calls.total == 16
    made._orig_mod.disable_cache()
    torch._dynamo.reset()  # it does not try again what it could not trace
    follows(pipeline, plan, branches=2, seed=1)


def test_a_copy_of_the_compiled_model_has_its_own_state():
    pipeline = tiny.flux()
    made, _ = planned(pipeline)
    expected = tiny.generate(pipeline, 1)
    twin = copy.deepcopy(made)
    same(tiny.generate(pipeline, 1), expected)
    pipeline.transformer = twin
    first = [tiny.generate(pipeline, seed) for seed in (1, 2)]
    pipeline.transformer = made._orig_mod
    same(first, [tiny.generate(pipeline, seed) for seed in (1, 2)])
    assert ditcache.summary(made).plan != "none"


def test_pickling_is_torchs_affair():
    """What torch.compile gives is pickled as the plain model; the plan travels as its own file."""
    pipeline = tiny.flux()
    planned(pipeline)
    stored = pickle.dumps(pipeline.transformer._orig_mod)
    assert b"ditcache" not in stored
    again = pickle.loads(stored)
    inputs = tiny.flux_inputs()
    same(again(**inputs).sample, pipeline.transformer._orig_mod(**inputs).sample)


def test_a_plan_fits_saved_and_loaded_weights(tmp_path):
    """save_pretrained on the compiled model, then a fresh one: the plan fits by its signature."""
    pipeline = tiny.flux()
    made, plan = planned(pipeline)
    made._orig_mod.save_pretrained(tmp_path)
    pipeline.transformer = diffusers.FluxTransformer2DModel.from_pretrained(tmp_path).eval()
    fresh = compiled(pipeline, plan=plan)
    assert fresh is not made
    follows(pipeline, plan, branches=2, seed=1)


def test_a_model_that_was_moved_follows_its_plan():
    pipeline = tiny.flux()
    _, plan = planned(pipeline)
    for device in ("cpu", torch.device("cpu", 0)):
        pipeline.to(device)
        follows(pipeline, plan, branches=2, seed=1)


def test_an_exported_step_can_be_read(tmp_path, capsys):
    """torch.export of the plain model, then ditcache-opt on the file."""
    from ditcache.passes.opt import main

    model = tiny.flux_transformer()
    inputs = tiny.flux_inputs() | {"return_dict": False}
    torch.export.save(torch.export.export(model, (), inputs), tmp_path / "step.pt2")
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "step.pt2"), "--stats"])
    assert ended.value.code == 0
    assert "denoiser" in capsys.readouterr().out


def test_a_compiled_vae_beside_the_compiled_denoiser():
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    pipeline.vae.decode = torch.compile(
        pipeline.vae.decode, backend="ditcache", options={"inner": "eager"}
    )
    for seed in range(2):
        with watched(made) as calls:
            ours = tiny.generate(pipeline, seed, output_type="pt")
        assert calls.computed == steps_of(plan)
        assert torch.isfinite(ours).all()


def test_policy_none_and_remove_are_the_plain_model():
    pipeline = tiny.flux()
    made, _ = planned(pipeline)
    ditcache.remove(made)
    in_full(pipeline, 16, seed=1)
