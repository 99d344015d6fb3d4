"""Traces with symbolic sizes: passes keep the symbols, and add no guard."""

from __future__ import annotations

import pytest
import torch
import toy_models as models
from torch import nn


@pytest.mark.parametrize("model", [models.Residual, models.Guided])
def test_a_dynamic_trace_keeps_its_symbols(lowered, planned, model):
    arguments = models.inputs()
    if model is models.Guided:
        arguments["text"] = torch.randn(4, 7, 8)
    done = lowered(
        model(1), arguments, "cleanup", dynamic=True, plan=planned("denoiser"), text=False
    )
    from ditcache.passes.ir import placeholders, value_of

    sizes = [d for n in placeholders(done.graph) if isinstance(value_of(n), torch.Tensor)
             for d in value_of(n).shape]  # fmt: skip
    symbols = {s for d in sizes if isinstance(d, torch.SymInt) for s in d.node.expr.free_symbols}
    assert len(symbols) >= 2, "batch and tokens stay open"
    assert done.slots[0].nbytes == 2 * 16 * 4 * 4
    assert done.region("denoiser").macs > 0


def test_no_pass_adds_a_guard_to_a_dynamic_trace(planned):
    from ditcache.passes import pipeline
    from ditcache.passes.base import PassContext
    from ditcache.passes.ir import StepGraph, placeholders, value_of

    seen = []

    def backend(module, _):
        values = [value_of(n) for n in placeholders(module.graph)]
        env = next(
            d.node.shape_env
            for v in values if isinstance(v, torch.Tensor)
            for d in v.shape if isinstance(d, torch.SymInt)
        )  # fmt: skip
        before = len(env.guards), dict(env.replacements)
        ctx = PassContext(plan=planned("blocks.0"))
        pipeline.run(StepGraph("step", module), pipeline.DEFAULT, ctx, check="fast")
        seen.append((before, (len(env.guards), dict(env.replacements))))
        return module.forward

    torch._dynamo.reset()
    model = torch.compile(models.Residual(1).eval(), backend=backend, dynamic=True)
    with torch.no_grad():
        model(**models.inputs())
        model(**models.inputs(batch=3, tokens=20))
    torch._dynamo.reset()
    assert len(seen) == 1, "a second size must not compile again"
    assert seen[0][0] == seen[0][1]


def test_a_size_of_one_may_have_any_stride(lowered, planned):
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(8, 8)

        def forward(self, x, t):
            return (self.lin(x) * t[:, None, None])[:, None].transpose(0, 1).clone()[0][:, :1]

    done = lowered(Single(), models.wide(1), "cleanup", plan=planned("denoiser"), text=False)
    assert len(done.variants) == 2
