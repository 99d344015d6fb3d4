"""Lowering: equal blocks share one compiled piece, and nothing else does."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime import lower
from ditcache.runtime.lower import piece_cache
from torch._dynamo.backends.registry import _COMPILER_FNS, register_backend

from .helpers import Denoiser, compiled, counting, first, generate, grid, make_plan, noise, prompt

COMPILED: list[torch.fx.GraphModule] = []


@pytest.fixture
def inner():
    """A registered inner compiler that counts what it is given."""
    name = "ditcache_tests_inner"

    def compile_piece(gm, example_inputs):
        COMPILED.append(gm)
        return torch._dynamo.lookup_backend("aot_eager")(gm, example_inputs)

    if name not in _COMPILER_FNS:
        register_backend(compile_piece, name=name)
    COMPILED.clear()
    piece_cache(name).pieces.clear()
    return name


def close(one, two):
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


def test_the_number_of_compiled_pieces_does_not_grow_with_depth(inner):
    sizes = []
    for blocks in (3, 6):
        COMPILED.clear()
        piece_cache(inner).pieces.clear()
        torch._dynamo.reset()
        model = Denoiser(blocks=blocks)
        close(generate(compiled(model, inner=inner, policy="exact")), generate(model))
        sizes.append(len(COMPILED))
    assert sizes[0] == sizes[1]


def test_parts_have_no_graphs_of_inductors_own(monkeypatch):
    """A replay would overwrite what is in a slot by then."""
    from torch._inductor import config

    seen: list[bool] = []

    def compile_piece(gm, example_inputs):
        seen.append(config.triton.cudagraphs)
        return gm.forward

    monkeypatch.setattr(lower, "lookup_backend", lambda name: compile_piece)
    monkeypatch.setattr(lower, "_caches", {})
    with config.patch({"triton.cudagraphs": True}):
        made = compiled(Denoiser(), inner="inductor", policy="exact")
        made(noise(), torch.ones(1), prompt())
        assert config.triton.cudagraphs
    assert seen
    assert not any(seen)


def test_pieces_with_equal_ops_and_other_wiring_are_told_apart(inner):
    class Crossed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(4))

        def forward(self, hidden_states, timestep):
            a = b = hidden_states * timestep[:, None, None]
            for i, block in enumerate(self.blocks):
                y = block(a)
                # The same ops on the same shapes, with the operands exchanged in turn.
                a, b = (y - b, a) if i % 2 else (b - y, a)
            return a + 2 * b

    model = Crossed()
    made = compiled(model, inner=inner, policy="exact")
    for t in (1.0, 0.5):
        close(made(noise(), torch.tensor([t])), model(noise(), torch.tensor([t])))


def test_constants_belong_to_a_pieces_identity(inner):
    class Powers(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(3))

        def forward(self, hidden_states, timestep):
            h = hidden_states * timestep[:, None, None]
            for i, block in enumerate(self.blocks):
                h = block(h) * (i + 1.5)
            return h

    model = Powers()
    made = compiled(model, inner=inner, policy="exact")
    close(made(noise(), torch.ones(1)), model(noise(), torch.ones(1)))


def test_pieces_compiled_under_autocast_are_not_used_without(inner):
    model = Denoiser()
    made = compiled(model, inner=inner, policy="exact")
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            half = first(made(noise(), torch.ones(1), prompt()))
            expected = first(model(noise(), torch.ones(1), prompt()))
        assert half.dtype == expected.dtype == torch.bfloat16
        torch.testing.assert_close(half, expected, rtol=0.05, atol=0.05)
        full = first(made(noise(), torch.ones(1), prompt()))
        assert full.dtype == torch.float32
        close(full, first(model(noise(), torch.ones(1), prompt())))


def test_graphs_of_symbolic_sizes_do_not_share_pieces(inner):
    model = Denoiser()
    made = torch.compile(
        model, backend="ditcache", dynamic=True, options={"inner": inner, "policy": "exact"}
    )
    other = torch.compile(
        Denoiser(seed=1), backend="ditcache", dynamic=True, options={"inner": inner}
    )
    for tokens in (6, 9, 4):
        close(generate(made, tokens=tokens), generate(model, tokens=tokens))
        close(generate(other, tokens=tokens), generate(other._orig_mod, tokens=tokens))


def test_policy_none_hands_over_the_captured_graph(inner):
    """Whole and unchanged, until there is a plan; and again when that is gone."""
    model = Denoiser()
    made = compiled(model, inner=inner, policy="none")
    plain = generate(made)
    assert len(COMPILED) == 1
    close(plain, generate(model))
    summary = ditcache.summary(made)
    assert (summary.calls, summary.computed, summary.reduction) == (len(grid()), len(grid()), 1.0)
    assert "the step as it was captured" in str(summary)
    ditcache.apply(made, make_plan(model))
    generate(made)
    assert ditcache.summary(made).forecast > 0
    assert len(COMPILED) > 1
    assert "as it was captured" not in str(ditcache.summary(made))
    ditcache.remove(made)
    before = len(COMPILED)
    torch.testing.assert_close(generate(made), plain, rtol=0, atol=0)
    assert len(COMPILED) == before


def test_a_plan_reuses_the_pieces_of_the_uncached_step(inner):
    model = Denoiser()
    made = compiled(model, inner=inner, policy="exact")
    generate(made)
    before = len(COMPILED)
    plan = make_plan(model)
    ditcache.apply(made, plan)
    with counting() as ran:
        generate(made)
    assert ran["body"] == plan.computed_steps < len(grid())
    assert len(COMPILED) == before


class Both(torch.nn.Module):
    """A block over two streams; gives them as two views of one value, or one as a new value."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.views = views
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, text, h):
        both = torch.cat([text, h], dim=1)
        both = both + self.linear(both)
        text, h = both[:, : text.shape[1]], both[:, text.shape[1] :]
        return text if self.views else text.tanh(), h


class Streams(torch.nn.Module):
    """Blocks over two streams, of which only the second is read in the end."""

    def __init__(self, blocks: int, views: bool) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Both(views) for _ in range(blocks))

    def forward(self, hidden_states, timestep, encoder_hidden_states):
        h, text = hidden_states, encoder_hidden_states * timestep[:, None, None]
        for block in self.blocks:
            text, h = block(text, h)
        return h


@pytest.mark.parametrize(("views", "kinds"), [(True, 1), (False, 2)])
def test_a_last_block_that_gives_fewer_views_is_served_by_the_others(inner, views, kinds):
    model = Streams(4, views).requires_grad_(False)
    made = compiled(model, inner=inner, policy="exact")
    for t in (1.0, 0.5):
        inputs = noise(), torch.tensor([t]), prompt()
        close(made(*inputs), model(*inputs))
    blocks = [p for p in COMPILED if any(n.target is torch.cat for n in p.graph.nodes)]
    assert len(blocks) == kinds
