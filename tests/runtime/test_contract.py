"""What torch.compile's own tests and diffusers' ask of a backend, and an unmodified pipeline."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of
from torch import nn

from .helpers import forecast_by_hand

INDUCTOR = {"rtol": 1e-3, "atol": 1e-4}


class Seq(nn.Module):
    """The model of pytorch's test/dynamo/test_backends.py."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10), nn.Sigmoid())

    def forward(self, x):
        return self.layers(x)


def test_the_backend_is_listed():
    assert "ditcache" in torch._dynamo.list_backends(exclude_tags=None)


@pytest.mark.parametrize("inner", ["eager", "inductor", "aot_eager"])
@pytest.mark.parametrize("grad", [False, True])
def test_results_are_the_models_with_and_without_gradients(inner, grad):
    model, x = Seq().eval(), torch.randn(2, 10)
    with torch.set_grad_enabled(grad):
        expected = model(x)
        made = torch.compile(model, backend="ditcache", options={"inner": inner})
        torch.testing.assert_close(made(x), expected, rtol=1e-2, atol=1e-2)
        torch.testing.assert_close(made(x), expected, rtol=1e-2, atol=1e-2)


def test_a_plain_function_works():
    made = torch.compile(lambda x, y: (x.sin() + y).sum(), backend="ditcache")
    x, y = torch.randn(3), torch.randn(3)
    torch.testing.assert_close(made(x, y), (x.sin() + y).sum())


def test_options_arrive_and_bad_ones_are_named():
    made = torch.compile(Seq(), backend="ditcache", options={"speedupp": 2})
    with pytest.raises(Exception, match="Did you mean 'speedup'"):
        made(torch.randn(2, 10))


# diffusers --------------------------------------------------------------------------------------

diffusers = pytest.importorskip("diffusers")


def flux(**changes):
    config = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 12,
        "pooled_projection_dim": 8,
        "axes_dims_rope": (2, 2, 4),
        "guidance_embeds": False,
    }
    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(**(config | changes)).eval()


def flux_inputs(t=1.0, side=4, length=5, batch=1, seed=0):
    g = torch.Generator().manual_seed(seed)
    ids = torch.zeros(side * side, 3)
    ids[:, 1], ids[:, 2] = torch.arange(side * side) // side, torch.arange(side * side) % side
    return {
        "hidden_states": torch.randn(batch, side * side, 16, generator=g),
        "encoder_hidden_states": torch.randn(batch, length, 12, generator=g),
        "pooled_projections": torch.randn(batch, 8, generator=g),
        "timestep": torch.full((batch,), t),
        "img_ids": ids,
        "txt_ids": torch.zeros(length, 3),
    }


def dit():
    torch.manual_seed(0)
    return diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    ).eval()


def dit_inputs(t=999.0, side=8, batch=2, seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(batch, 4, side, side, generator=g),
        "timestep": torch.full((batch,), int(t)),
        "class_labels": torch.tensor([1, 3][:batch]),
    }


ZOO = {"flux": (flux, flux_inputs, (1.0, 0.7, 0.2)), "dit": (dit, dit_inputs, (999, 500, 3))}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("inner", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_full_graph_and_no_recompilation(name, inner):
    build, inputs, times = ZOO[name]
    model = build()
    made = torch.compile(model, backend="ditcache", fullgraph=True, options={"inner": inner})
    with torch._dynamo.config.patch(error_on_recompile=True):
        for t in times:
            ours = made(**inputs(t), return_dict=False)[0]
            theirs = model(**inputs(t), return_dict=False)[0]
            if inner == "eager":
                torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
            else:
                torch.testing.assert_close(ours, theirs, **INDUCTOR)
    summary = ditcache.summary(made)
    assert (summary.graphs, summary.uncached) == (1, ())


@pytest.mark.parametrize("name", ZOO)
def test_dataclass_outputs_keep_their_type(name):
    build, inputs, times = ZOO[name]
    model = build()
    made = torch.compile(model, backend="ditcache", fullgraph=True, options={"inner": "eager"})
    ours, theirs = made(**inputs(times[0])), model(**inputs(times[0]))
    assert type(ours) is type(theirs)
    torch.testing.assert_close(ours.sample, theirs.sample, rtol=0, atol=0)


@pytest.mark.parametrize("specialize_float", [True, False])
def test_dynamic_shapes_need_one_graph_for_all_sizes(specialize_float):
    """By default dynamic=True makes dropout_p=0.0 a symbolic number: it still draws nothing."""
    model = flux()
    made = torch.compile(
        model, backend="ditcache", fullgraph=True, dynamic=True, options={"inner": "eager"}
    )
    config = torch._dynamo.config.patch
    with config(error_on_recompile=True), config(specialize_float=specialize_float):
        for side in (6, 8, 5):  # not 4: its 16 tokens would pass for the 16 channels
            inputs = flux_inputs(side=side)
            ours, theirs = (m(**inputs, return_dict=False)[0] for m in (made, model))
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert ditcache.summary(made).graphs == 1
    assert not ditcache.summary(made).uncached


def test_blocks_compiled_by_themselves_run_uncached():
    model = flux(num_layers=2, num_single_layers=2)
    expected = model(**flux_inputs(), return_dict=False)[0]
    model.compile_repeated_blocks(backend="ditcache", options={"inner": "eager"})
    for _ in range(3):
        got = model(**flux_inputs(), return_dict=False)[0]
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


# A whole pipeline ---------------------------------------------------------------------------------


@pytest.fixture
def pipeline():
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,),
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        latent_channels=4,
        norm_num_groups=4,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.0,
        scaling_factor=1.0,
    ).eval()
    made = diffusers.FluxPipeline(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=flux(),
    )
    made.set_progress_bar_config(disable=True)
    return made


def embeddings(seed, length=5):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(1, length, 12, generator=g), torch.randn(1, 8, generator=g)


def run(pipeline, seed=0, steps=8, side=16, scale=2.0):
    prompt, pooled = embeddings(seed)
    negative, negative_pooled = embeddings(99)
    return pipeline(
        prompt_embeds=prompt,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=negative,
        negative_pooled_prompt_embeds=negative_pooled,
        true_cfg_scale=scale,
        height=side,
        width=side,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images


def test_an_unmodified_pipeline_with_guidance_is_recorded_and_planned(pipeline):
    original = pipeline.transformer
    expected = [run(pipeline, seed=s) for s in range(4)]
    pipeline.transformer = torch.compile(original, backend="ditcache", options={"inner": "eager"})
    made = pipeline.transformer
    for seed in range(2):
        torch.testing.assert_close(run(pipeline, seed=seed), expected[seed], rtol=0, atol=0)
    assert ditcache.summary(made).computed == 2 * 2 * 8
    for seed in (2, 3):
        error = (run(pipeline, seed=seed) - expected[seed]).norm() / expected[seed].norm()
        assert 0 < error < 0.1
    summary = ditcache.summary(made)
    assert (summary.computed, summary.forecast) == (2 * 16 + 2 * 8, 2 * 8)
    assert (summary.graphs, summary.uncached, summary.fallbacks) == (1, (), {})


def test_the_branches_have_the_pipelines_names_and_the_plan_equals_the_loop_by_hand(pipeline):
    original = pipeline.transformer
    made = torch.compile(original, backend="ditcache", options={"inner": "eager"})
    pipeline.transformer = made
    profile = ditcache.calibrate(made, lambda i: run(pipeline, seed=10 + i), samples=2)
    assert sorted(profile.branches) == ["cond", "uncond"]
    assert profile.guidance == pytest.approx(2.0, abs=0.05)
    plan = profile.plan(speedup=2.0)
    ditcache.apply(made, plan)
    ours = run(pipeline, seed=3)
    pipeline.transformer = ByHand(original, plan, embeddings(3)[0])
    theirs = run(pipeline, seed=3)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


class ByHand:
    """Looks like the transformer to the pipeline; each branch follows the plan in eager code."""

    def __init__(self, model, plan, prompt) -> None:
        self._model, self._prompt = model, prompt
        self._steps = {True: 0, False: 0}
        forward = {b: lambda inputs, *_: model(**inputs)[0] for b in self._steps}
        self._branches = {b: forecast_by_hand(plan, forward[b]) for b in self._steps}

    def __call__(self, **inputs):
        branch = torch.equal(inputs["encoder_hidden_states"], self._prompt)
        step = self._steps[branch]
        self._steps[branch] += 1
        return (self._branches[branch](inputs, None, step),)

    def __getattr__(self, name):
        return getattr(self._model, name)


def forecasts(made):
    return ditcache.summary(made).forecast if session_of(made) is not None else 0


def test_two_generations_then_other_steps_then_another_size(pipeline):
    original = pipeline.transformer
    plain = {
        (steps, side): [run(pipeline, seed=s, steps=steps, side=side) for s in range(3)]
        for steps, side in ((8, 16), (6, 16), (8, 24))
    }
    made = torch.compile(original, backend="ditcache", options={"inner": "eager"})
    pipeline.transformer = made
    for (steps, side), expected in plain.items():
        before = forecasts(made)
        for seed in range(2):
            ours = run(pipeline, seed=seed, steps=steps, side=side)
            torch.testing.assert_close(ours, expected[seed], rtol=1e-5, atol=1e-5)
        assert ditcache.summary(made).forecast == before, "no plan applies yet"
        ours = run(pipeline, seed=2, steps=steps, side=side)
        assert (ours - expected[2]).norm() / expected[2].norm() < 0.1
        assert ditcache.summary(made).forecast == before + steps
