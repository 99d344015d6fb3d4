"""A pass with a bug, and the error that the verifier then raises."""

from __future__ import annotations

import pytest
import toy_models as models
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext, PassResult
from ditcache.passes.ops import cache_cond
from ditcache.passes.trace import trace
from ditcache.passes.verifier import RULES, VerifyError


class Breaks:
    """A pass with a bug: runs another one, then does harm."""

    def __init__(self, inner: str, harm):
        self.inner = pipeline.BY_NAME[inner]
        self.name = f"broken-{inner}"
        self.requires, self.ensures = self.inner.requires, self.inner.ensures
        self.harm = harm

    def apply(self, graph, ctx):
        done = self.inner.apply(graph, ctx).graph
        return PassResult(self.harm(done) or done, True)


def broken(
    inner, harm, *, plan=None, check="full", budget=None, change=None, guarded=False
) -> VerifyError:
    """The error that follows when the pass `inner` does `harm` to its result."""
    graph = trace(models.Residual(2).eval(), (), models.inputs(), name="toy")
    names = [p.name for p in pipeline.DEFAULT]
    ctx = PassContext(plan=plan, guarded=guarded)
    graph, _ = pipeline.run(graph, pipeline.DEFAULT[: names.index(inner)], ctx, check="full")
    ctx.slot_budget = budget
    if change is not None:
        ctx.plan = change(plan)
    with pytest.raises(VerifyError) as caught:
        pipeline.run(graph, [Breaks(inner, harm)], ctx, check=check)
    error = caught.value
    assert error.after == f"broken-{inner}"
    text = str(error)
    for part in (error.rule, RULES[error.rule][0], "expected: ", "got: ", f"broken-{inner}"):
        assert part in text
    assert f"reproduce: ditcache-opt toy --verify-each --stop-after broken-{inner}" in text
    return error


def arms(graph):
    cond = next(n for n in graph.graph.nodes if n.target is cache_cond)
    return cond, *(graph.module.get_submodule(a.target) for a in cond.args[1:3])


def nothing(graph):
    return None
