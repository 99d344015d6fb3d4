"""What diffusers' own compile tests ask of a backend, for five of its transformers.

The same contract as its TorchCompile mixins: one full graph, no recompilation on the second call,
one dynamic graph for several resolutions, repeated blocks compiled once. Here the number of graphs
is asserted too: a backend that nothing reaches would pass all of them.
"""

from __future__ import annotations

import copy
from typing import Any

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils._pytree import tree_leaves

from bench.architectures import ARCHITECTURES, Request

FIVE = ["Flux", "Stable Diffusion 3", "Wan 2.1 T2V", "LTX", "Qwen-Image"]
OPTIONS = {"inner": "eager", "remember": False}


def call_of(model: nn.Module, sampler: Any, request: Request) -> dict[str, Any]:
    """The keyword arguments with which the pipeline first calls the model."""
    calls: list[dict[str, Any]] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    sampler(model, request)
    hook.remove()
    return calls[0]


def same(one: Any, two: Any) -> None:
    pairs = zip(tree_leaves(one), tree_leaves(two), strict=True)
    for ours, theirs in pairs:
        if isinstance(ours, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.fixture(params=FIVE)
def at_work(request):
    torch._dynamo.reset()
    counters.clear()
    architecture = ARCHITECTURES[request.param]
    model, sampler = architecture.build(), architecture.sampler()
    with torch.no_grad():
        yield model, [call_of(model, sampler, Request(2, large=b)) for b in (False, True)]
    torch._dynamo.reset()


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_one_full_graph_and_no_recompilation(at_work):
    model, (call, _) = at_work
    made = torch.compile(model, backend="ditcache", fullgraph=True, options=OPTIONS)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for factor in (1, 1, 0.5):
            now = call | {"timestep": (call["timestep"] * factor).to(call["timestep"].dtype)}
            same(made(**now), model(**now))
    assert graphs() == 1
    summary = ditcache.summary(made)
    assert (summary.graphs, summary.calls, summary.uncached) == (1, 3, ())


def test_one_dynamic_graph_for_several_resolutions(at_work):
    model, (small, large) = at_work
    made = torch.compile(model, backend="ditcache", fullgraph=True, dynamic=True, options=OPTIONS)
    with (
        torch._dynamo.config.patch(error_on_recompile=True),
        torch.fx.experimental._config.patch(use_duck_shape=False),
    ):
        for call in (small, large, small):
            same(made(**call), model(**call))
    assert graphs() == 1
    assert (ditcache.summary(made).graphs, ditcache.summary(made).uncached) == (1, ())


@pytest.mark.parametrize("at_work", [*FIVE[:1], *FIVE[2:], "Flux 2"], indirect=True)
def test_repeated_blocks_compile_as_often_as_elsewhere_and_are_not_cached(at_work):
    """SD3 declares no repeated blocks; Flux 2 stands in for it."""
    model, (call, _) = at_work
    expected = model(**call)
    plain = copy.deepcopy(model)
    plain.compile_repeated_blocks(backend="eager", fullgraph=True)
    plain(**call)
    wanted = graphs()
    torch._dynamo.reset()
    counters.clear()
    model.compile_repeated_blocks(backend="ditcache", fullgraph=True, options=OPTIONS)
    same(model(**call), expected)
    with torch._dynamo.config.patch(error_on_recompile=True):
        same(model(**call), expected)
    assert graphs() == wanted > 0
    blocks = [m for m in model.modules() if type(m).__name__ in model._repeated_blocks]
    for block in blocks:
        session = session_of(block)
        assert session is not None
        assert (session.stats.calls, session.stats.forecast) == (2, 0)
