"""A step of which a probe decides on the device whether it is computed: its IR and its meaning."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import toy_models as models
from ditcache.passes.ir import placeholders
from ditcache.passes.plan_format import DecisionRule, ProbePoint
from ditcache.runtime.lower import lower

STEP = {**models.inputs(), "hidden_states": models.wide()[0]}
REFERENCES = [
    ("dbcache", (("front", 1), ("threshold", 0.1), ("warmup", 1)), "blocks[0:1] delta", "computed"),
    ("teacache", (("threshold", 0.4),), "latents", "previous"),
]


def decided_by(plan, policy, options, value, reference):
    probes = (ProbePoint(value, reference),)
    return dataclasses.replace(plan, rule=DecisionRule(policy, options, probes))


def test_the_conditional_stays_and_its_predicate_is_the_devices(filecheck, lowered, planned):
    plan = decided_by(planned("blocks[1:]", computed=(0,)), *REFERENCES[0])
    text = lowered(models.Step(depth=2), STEP, "cleanup", plan=plan, on_device=True)
    filecheck(
        text,
        """
        CHECK: variant 4 (decided, blocks[1:]: forecast)  //
        CHECK:        %cache_below = cache.below %cache_probe, %decide_limit, %decide_flag, %decide_running : i1 device
        CHECK-NEXT:   %cache_cond = cache.cond %cache_below $blocks[1:] $probe.0 {
        CHECK-NEXT:     hit:
        CHECK-NEXT:       %cache_forecast = cache.forecast $blocks[1:], %{{.*}} : f32[2,16,8]
        CHECK-NEXT:       yield (%cache_forecast,)
        CHECK:          miss:
        CHECK:            cache.write $blocks[1:], %h_1
        CHECK-NEXT:       cache.write $probe.0, %sub
        CHECK-NEXT:       yield (%h_1,)
        CHECK-NOT:    cache.write
        CHECK:        yield ((%linear_7,), ())
        """,  # noqa: E501
    )


def test_what_is_written_in_either_case_is_handed_out(filecheck, lowered, planned):
    """A rule that adds up distances from one step to the next."""
    plan = decided_by(planned("blocks[:]", computed=(0,)), *REFERENCES[1])
    text = lowered(models.Step(depth=2), STEP, "cleanup", plan=plan, on_device=True)
    filecheck(
        text,
        """
        CHECK: variant 4 (decided, blocks[:]: forecast) writes $probe.0
        CHECK:   cache.below %cache_probe, {{.*}}, accumulate=True : i1 device
        CHECK-NOT: cache.write $probe.0
        CHECK:   yield ((%{{.*}},), (%hidden_states,))
        """,
    )


@pytest.mark.parametrize("rule", REFERENCES, ids=["one", "sum"])
def test_several_regions_and_longer_histories_stay_with_the_host(lowered, planned, rule):
    for plan in (planned("blocks.0", "blocks.1", computed=(0,)),
                 planned("blocks[1:]", computed=(0, 1), history=2)):  # fmt: skip
        given = decided_by(plan, rule[0], rule[1], "latents", rule[3])
        graph = lowered(models.Step(depth=2), STEP, "cleanup", text=False, plan=given,
                        on_device=True)  # fmt: skip
        assert all(v.stage != "decided" for v in graph.variants)


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
@pytest.mark.parametrize("rule", REFERENCES, ids=["one", "sum"])
def test_lowered_it_means_what_the_graph_means(lowered, planned, inner, rule):
    """Interpreted op by op, and as it runs; the slots hold the same afterwards."""
    plan = decided_by(planned("blocks[:]" if rule[2] == "latents" else "blocks[1:]"), *rule)
    graph = lowered(models.Step(depth=2), STEP, "cleanup", text=False, plan=plan, on_device=True)
    module = next(v.module for v in graph.variants if v.stage == "decided")
    run = lower(module, inner)
    found = []
    for limit in (1e6, 0.0):
        both = []
        for made in (module, run):
            torch.manual_seed(1)
            given = {n.name: torch.randn(tuple(n.meta["example_value"].shape))
                     for n in placeholders(module.graph)}  # fmt: skip
            given |= {
                "decide_limit": torch.tensor([limit]), "decide_running": torch.zeros(4),
                "decide_flag": torch.tensor([7], dtype=torch.int32),
            }  # fmt: skip
            (out,), writes = made(*given.values())
            state = [v for k, v in given.items() if k.startswith(("slot_", "decide_"))]
            both.append([t.clone() for t in (out, *writes, *state)])
        torch.testing.assert_close(*both)
        found.append((both[0][0], int(given["decide_flag"])))
    (skipped, low), (computed, high) = found
    assert (low, high) == (0, 1)
    assert not torch.equal(skipped, computed)
