"""LoRA adapters, through peft: the next call uses the new weights, the plan is kept with a note.

What a plan holds are weights over steps, not of the model; other weights of one architecture run
under it, only the predicted error is that of the weights it was recorded with.
"""

from __future__ import annotations

import diffusers
import ditcache
import peft
import pytest
import torch
from ditcache.runtime.session import session_of

from . import tiny_pipelines as tiny
from .observing import compiled, error, follows, in_full, own_plan, planned, same, watched

TARGETS = ["to_q", "to_v", "proj_mlp", "linear"]  # "linear" is modulation: hoisted out of the step


def add(model, name, seed=0):
    torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=8,
        target_modules=TARGETS,
        init_lora_weights=False,  # random, not zero
    )
    model.add_adapter(config, adapter_name=name)


def first_call(made, seed=0):
    """One call at the start of a generation, compiled and plain."""
    inputs = tiny.flux_inputs(seed=seed)
    return made(**inputs, return_dict=False)[0], made._orig_mod(**inputs, return_dict=False)[0]


# Each changes the weights in its own way; all but the first leave the module tree as it was.
CHANGES = {
    "loaded": lambda m: add(m, "new", 5),
    "swapped": lambda m: m.set_adapters(["two"]),
    "scaled": lambda m: m.set_adapters(["one"], [0.3]),
    "mixed": lambda m: m.set_adapters(["one", "two"], [0.4, 0.6]),
    "disabled": lambda m: m.disable_adapters(),
    "fused": lambda m: m.fuse_lora(),
    "unloaded": lambda m: m.unload_lora(),
}


@pytest.fixture
def adapted():
    """A pipeline with two adapters, the first active, and a plan made with it."""
    pipeline = tiny.flux()
    for seed, name in enumerate(("one", "two")):
        add(pipeline.transformer, name, seed)
    pipeline.transformer.set_adapters(["one"])
    made, plan = planned(pipeline)
    return pipeline, made, plan


@pytest.mark.parametrize("change", CHANGES)
def test_the_next_generation_is_that_of_the_new_weights(adapted, change):
    """Exactly in what is computed and hoisted, by the hand-written plan in the rest."""
    pipeline, made, plan = adapted
    follows(pipeline, plan, branches=2, seed=1)
    before = first_call(made)[1]
    CHANGES[change](made._orig_mod)
    ours, theirs = first_call(made)
    same(ours, theirs)
    assert error(theirs, before) > 1e-3 or change == "fused", "the weights did change"
    follows(pipeline, plan, branches=2, seed=2)


def test_fused_and_unfused_again_with_the_exact_tier():
    """peft writes through `.data`, which counts no version: hoisted values must notice even so."""
    pipeline = tiny.flux()
    add(pipeline.transformer, "one")
    compiled(pipeline, policy="exact")
    model = pipeline.transformer._orig_mod
    for change in (None, model.fuse_lora, model.unfuse_lora, model.unload_lora):
        if change is not None:
            change()
        in_full(pipeline, 16, seed=0)
    in_full(pipeline, 16, seed=1)


def test_the_pipelines_own_lora_calls_on_a_model_compiled_in_place(tmp_path):
    """Of one that torch.compile has wrapped, diffusers' pipelines find no adapters."""
    donor = tiny.flux_transformer()
    add(donor, "late")
    weights = peft.get_peft_model_state_dict(donor, adapter_name="late")
    diffusers.FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=weights)
    pipelines = [tiny.flux(), tiny.flux()]
    made = pipelines[0].transformer
    made.compile(backend="ditcache", options={"inner": "eager", "policy": "exact"})
    before = tiny.generate(pipelines[1], 1)
    for change in (
        lambda p: p.load_lora_weights(tmp_path, adapter_name="late"),
        lambda p: p.set_adapters(["late"], [0.5]),
        lambda p: p.fuse_lora(),
        lambda p: p.unfuse_lora(),
        lambda p: p.unload_lora_weights(),
    ):
        for pipeline in pipelines:
            change(pipeline)
        ours, theirs = (tiny.generate(pipeline, 1) for pipeline in pipelines)
        same(ours, theirs)
    assert error(theirs, before) < 1e-5
    assert sum(ditcache.summary(made).hoist_hits.values()) > 0


def test_a_plan_for_other_weights_is_kept_and_said_once(adapted, caplog):
    pipeline, made, plan = adapted
    for name in ("two", "one", "two"):
        made._orig_mod.set_adapters([name])
        follows(pipeline, plan, branches=2, seed=1)
    assert session_of(made).plans == [plan]
    assert caplog.text.count("weights are not those that the plan was made for") == 1


def test_with_an_error_bound_other_weights_are_recorded_anew():
    """A promise of an error holds for the weights it was recorded with."""
    pipeline = tiny.sd3()
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
        pipeline.transformer.add_adapter(config, adapter_name=name)
    made = compiled(pipeline, max_error=0.05, profile_generations=1)
    plans = {}
    for name in ("one", "two"):
        made._orig_mod.set_adapters([name])
        in_full(pipeline, 8, seed=0)
        plans[name] = own_plan(made)
        follows(pipeline, plans[name], seed=1)
    made._orig_mod.set_adapters(["one"])
    follows(pipeline, plans["one"], seed=2)


def test_remembered_plans_are_kept_by_weights(tmp_path):
    """A plan made with an adapter is not what the next process starts with without it."""
    pipeline = tiny.sd3()
    made = compiled(pipeline, remember=True, profile_generations=1)
    in_full(pipeline, 8, seed=0)
    own_plan(made)
    for weight in made._orig_mod.parameters():
        weight.mul_(1.1)
    in_full(pipeline, 6, seed=0, num_inference_steps=6)
    own_plan(made)
    folders = {p.parent for p in (tmp_path / "ditcache").rglob("*.plan.json")}
    assert len(folders) == 2


def test_an_adapter_switched_in_mid_generation():
    """From the call on that sees the new weights nothing old is forecast."""
    pipeline = tiny.flux()
    for seed, name in enumerate(("one", "two")):
        add(pipeline.transformer, name, seed)
    pipeline.transformer.set_adapters(["one"])
    made, plan = planned(pipeline)

    def switch(_, step, __, kept):
        if step == 3:
            made._orig_mod.set_adapters(["two"])
        return kept

    with watched(made) as calls:
        tiny.generate(pipeline, 1, callback_on_step_end=switch)
    assert calls.computed[8:10] == [True, True]
    follows(pipeline, plan, branches=2, seed=2)


def test_an_adapter_loaded_in_mid_generation():
    """The model has new modules from then on: it is compiled again and nothing old is forecast."""
    pipeline = tiny.flux()
    made, plan = planned(pipeline)

    def load(_, step, __, kept):
        if step == 3:
            add(made._orig_mod, "late")
        return kept

    with watched(made) as calls:
        tiny.generate(pipeline, 1, callback_on_step_end=load)
    assert calls.computed[8:10] == [True, True]
    follows(pipeline, plan, branches=2, seed=2)


def test_many_adapters_run_into_dynamos_limit_and_stay_right():
    """After `recompile_limit` graphs Dynamo runs the model uncompiled: slow, never wrong."""
    pipeline = tiny.sd3()
    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False)
    pipeline.transformer.add_adapter(config, adapter_name="one")
    made, _ = planned(pipeline)
    with torch._dynamo.config.patch(recompile_limit=2):
        for scale in (0.2, 0.4, 0.6):
            made._orig_mod.set_adapters(["one"], [scale])
            ours, theirs = (
                m(
                    hidden_states=torch.ones(1, 4, 8, 8),
                    timestep=torch.ones(1),
                    encoder_hidden_states=tiny.words(0),
                    pooled_projections=tiny.pooled(0),
                    return_dict=False,
                )[0]
                for m in (made, made._orig_mod)
            )
            same(ours, theirs)
    assert ditcache.summary(made).forecast == 0
