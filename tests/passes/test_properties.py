"""Properties over random residual graphs and random plans."""

from __future__ import annotations

import torch
from ditcache.kernels.forecast import forecast_reference
from ditcache.passes import pipeline
from ditcache.passes.base import PassContext
from ditcache.passes.ir import InputKind, kind_of, placeholders
from ditcache.passes.names import source_name
from ditcache.passes.plan_format import Plan, RegionSchedule
from ditcache.passes.rewriter import identifier
from ditcache.passes.trace import trace
from ditcache.passes.verifier import verify
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch.nn import functional as F

D = 6
OPS = ("linear", "gate", "attend", "inplace", "slice", "cast", "noise_free_dropout", "setitem")
SETTINGS = settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    derandomize=True,
)


class Body(nn.Module):
    """A block whose branches are drawn at random."""

    def __init__(self, branches):
        super().__init__()
        self.branches = branches
        count = sum(len(b) for b in branches)
        self.lin = nn.ModuleList(nn.Linear(D, D) for _ in range(count))

    def forward(self, h, emb, text):
        i = 0
        for ops in self.branches:
            y = h
            for op in ops:
                y = self._apply(op, self.lin[i], y, emb, text)
                i += 1
            h = h + y
        return h

    def _apply(self, op, lin, y, emb, text):
        match op:
            case "linear":
                return lin(y)
            case "gate":
                return y * torch.tanh(lin(emb))[:, None]
            case "attend":
                return F.scaled_dot_product_attention(y, lin(text), text)
            case "inplace":
                y = lin(y)
                y.mul_(0.5)
                y += 1
                return F.silu(y, inplace=True)
            case "slice":
                return torch.cat([lin(y[:, :2]), y[:, 2:]], 1)
            case "cast":
                return lin(y).to(torch.bfloat16).to(torch.float32)
            case "noise_free_dropout":
                return F.dropout(lin(y), 0.3, training=False)
            case _:
                out = torch.zeros_like(y)
                out[..., ::2] = lin(y)[..., ::2]
                return out


class Net(nn.Module):
    """A random chain of blocks between two projections."""

    def __init__(self, blocks):
        super().__init__()
        self.time = nn.Linear(1, D)
        self.blocks = nn.ModuleList(Body(b) for b in blocks)
        self.out = nn.Linear(D, D)

    def forward(self, hidden_states, timestep, text):
        emb = F.silu(self.time(timestep[:, None]))
        h = hidden_states
        for block in self.blocks:
            h = block(h, emb, text)
        return self.out(h), h.mean(1)


nets = st.lists(
    st.lists(st.lists(st.sampled_from(OPS), min_size=1, max_size=2), min_size=1, max_size=2),
    min_size=1,
    max_size=3,
)


@st.composite
def schedules(draw):
    """Steps, computed steps and history of a random plan."""
    steps = draw(st.integers(3, 8))
    computed = {0} | draw(st.sets(st.integers(1, steps - 1), max_size=steps - 2))
    return steps, tuple(sorted(computed)), draw(st.integers(1, 3))


def make_plan(regions, steps, computed, history, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in range(steps):
        row = [0.0] * history
        if step not in computed:
            known = min(history, sum(c < step for c in computed))
            row[:known] = (torch.rand(known, generator=generator) + 0.1).tolist()
        rows.append(tuple(row))
    return Plan(
        signature="0" * 16,
        timesteps=tuple(float(steps - i) for i in range(steps)),
        regions=tuple(
            RegionSchedule(r, computed, tuple(rows), history, "random", "random") for r in regions
        ),
        policy="random",
    ).validate()


def arguments(seed):
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(2, 5, D, generator=generator),
        "timestep": torch.rand(2, generator=generator),
        "text": torch.randn(2, 3, D, generator=generator),
    }


def traced(blocks):
    torch.manual_seed(0)
    model = Net(blocks).eval()
    return model, trace(model, (), arguments(0))


def sources(model, kwargs):
    return {**dict(model.named_parameters()), **dict(model.named_buffers()), **kwargs}


def run_step(done, model, kwargs, modes, slots, rows):
    """Outputs and values to write of one step, with fx.Interpreter on prologues and variant."""
    values = sources(model, kwargs)
    by_source = {n.name: values.get(source_name(n)) for p in done.prologues
                 for n in placeholders(p.module.graph)}  # fmt: skip
    for prologue in done.prologues:
        made = fx.Interpreter(prologue.module).run(
            *[by_source[n.name] for n in placeholders(prologue.module.graph)]
        )
        by_source |= dict(zip(prologue.outputs, made, strict=True))
    variant = next(v for v in done.variants if v.modes == modes)
    inputs = []
    for node in placeholders(variant.module.graph):
        match kind_of(node):
            case InputKind.SLOT:
                inputs.append(slots[node.meta["slot"]])
            case InputKind.WEIGHTS:
                inputs.append(rows[node.meta["region"]])
            case InputKind.HOISTED:
                inputs.append(by_source[node.name])
            case _:
                inputs.append(values[source_name(node)])
    outputs, writes = fx.Interpreter(variant.module).run(*inputs)
    return outputs, dict(zip(variant.writes, writes, strict=True))


def leaves(value):
    return torch.utils._pytree.tree_leaves(value)


@SETTINGS
@given(nets, st.integers(0, 5))
def test_the_computing_variant_is_the_model_bit_for_bit(blocks, seed):
    model, graph = traced(blocks)
    ctx = PassContext(plan=make_plan(["denoiser"], 4, (0, 2), 1, 0))
    done, _ = pipeline.run(graph, pipeline.DEFAULT, ctx, check="full")
    kwargs = arguments(seed)
    with torch.no_grad():
        expected = model(**kwargs)
        outputs, writes = run_step(done, model, kwargs, (False,), {}, {})
    assert all(torch.equal(a, b) for a, b in zip(leaves(expected), leaves(outputs), strict=True))
    assert set(writes) == {s.name for s in done.slots}


@SETTINGS
@given(nets, st.integers(0, 5))
def test_hoisting_is_bit_exact(blocks, seed):
    model, graph = traced(blocks)
    analysed, _ = pipeline.run(graph, pipeline.ANALYSIS, PassContext())
    kwargs = arguments(seed)
    values = sources(model, kwargs)
    with torch.no_grad():
        before = fx.Interpreter(analysed.module).run(
            *[values[source_name(n)] for n in placeholders(analysed.graph)]
        )
        done, _ = pipeline.run(analysed, pipeline.REWRITE, PassContext(), check="full")
        after, _ = run_step(done, model, kwargs, (), {}, {})
    assert all(torch.equal(a, b) for a, b in zip(leaves(before), leaves(after), strict=True))
    read = {source_name(n) for v in done.variants for n in placeholders(v.module.graph)}
    assert "timestep" not in read


@SETTINGS
@given(nets, schedules(), st.booleans(), st.integers(0, 99))
def test_a_plan_means_what_its_conditionals_say(blocks, schedule, by_block, seed):
    """Every step of a plan: the variant equals the cond graph under fx.Interpreter."""
    model, graph = traced(blocks)
    analysed, _ = pipeline.run(graph, pipeline.ANALYSIS, PassContext())
    fit = [r.name for r in analysed.regions if r.kind == "block" and r.refusal is None]
    regions = fit if by_block and fit else ["denoiser"]
    plan = make_plan(regions, *schedule, seed)
    ctx = PassContext(plan=plan)
    inserted, _ = pipeline.run(analysed, pipeline.REWRITE[:2], ctx, check="full")
    done, _ = pipeline.run(inserted, pipeline.REWRITE[2:], ctx, check="full")
    verify(done, ctx, "all", recompute=True)
    reference = {s.name: torch.zeros(s.history, *s.shape) for s in done.slots}
    slots = {name: ring.clone() for name, ring in reference.items()}
    for step in range(len(plan.timesteps)):
        kwargs = arguments(1000 + step)
        hits = {r.region: step not in r.computed for r in plan.regions}
        rows = {r.region: torch.tensor(r.weights[step]) for r in plan.regions}
        values = sources(model, kwargs)
        given_ = []
        for node in placeholders(inserted.graph):
            match kind_of(node):
                case InputKind.SLOT:
                    given_.append(reference[node.meta["slot"]])
                case InputKind.WEIGHTS:
                    given_.append(rows[node.meta["region"]])
                case InputKind.PREDICATE:
                    given_.append(hits[node.meta["region"]])
                case _:
                    given_.append(values[source_name(node)])
        with torch.no_grad():
            expected = fx.Interpreter(inserted.module).run(*given_)
            modes = tuple(hits[name] for name in done.scheduled)
            outputs, writes = run_step(done, model, kwargs, modes, slots, rows)
        for name, value in writes.items():
            slots[name] = torch.cat([value[None], slots[name][:-1]])
        pairs = zip(leaves(expected), leaves(outputs), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
        assert all(torch.equal(slots[n], reference[n]) for n in slots)


@SETTINGS
@given(nets, st.integers(1, 3), st.integers(0, 99))
def test_a_forecast_is_the_weighted_sum_of_its_slot(blocks, history, seed):
    model, graph = traced(blocks)
    computed = tuple(range(history))
    plan = make_plan(["denoiser"], history + 1, computed, history, seed)
    done, _ = pipeline.run(graph, pipeline.DEFAULT, PassContext(plan=plan))
    slots = {s.name: torch.randn(s.history, *s.shape) for s in done.slots}
    row = torch.tensor(plan.regions[0].weights[history])
    with torch.no_grad():
        outputs, writes = run_step(done, model, arguments(seed), (True,), slots, {"denoiser": row})
    assert not writes
    assert identifier("denoiser") == "denoiser"
    expected = [forecast_reference(slots[s.name], row) for s in done.slots]
    order = {s.value: i for i, s in enumerate(done.slots)}
    assert len(leaves(outputs)) == len(order)
    for value in leaves(outputs):
        assert any(torch.equal(value, e) for e in expected)
