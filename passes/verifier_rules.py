"""The verifier's rules: each yields what is wrong with a graph, nothing if all is well."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, fx

from .base import PassContext
from .dependence import SOURCES, autocast_ranges
from .effects import (
    is_autocast_mark,
    is_random,
    is_sync,
    op_base,
    recompute,
    storage_roots,
    written,
)
from .ir import (
    Depends,
    InputKind,
    StepGraph,
    depends_of,
    flat_nodes,
    kind_of,
    output_node,
    value_of,
)
from .modules import arms_of
from .ops import CACHE_OPS, cache_write
from .printer import node_text, type_text
from .symbolic import is_dense, is_static, same_layout, shape_of, stride_of


@dataclass(frozen=True)
class Violation:
    """What broke: expected, got, and the lines of the graph where it shows."""

    expected: str
    got: str
    lines: tuple[str, ...] = ()


def _modules(graph: StepGraph) -> Iterator[fx.GraphModule]:
    yield graph.module
    for _, arms in all_arms(graph):
        yield from arms
    yield from (p.module for p in graph.prologues)
    yield from (v.module for v in graph.variants)


def all_arms(graph: StepGraph) -> Iterator[tuple[fx.Node, tuple[fx.GraphModule, fx.GraphModule]]]:
    """Each conditional of the step and of its variants with its hit and miss arm."""
    for module in (graph.module, *(v.module for v in graph.variants)):
        for cond, *arms in arms_of(module):
            yield cond, (arms[0], arms[1])


def lint(graph: StepGraph) -> Iterator[Violation]:
    """The cheap half of V1: FX's own checks of every module."""
    for module in _modules(graph):
        try:
            module.graph.lint()
        except (RuntimeError, AssertionError) as broken:
            yield Violation("a well-formed FX graph", str(broken).splitlines()[0])


def v1(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V1: the graph is well-formed, and running each op on fake values gives what it carries."""
    yield from lint(graph)
    for module in _modules(graph):
        # In an autocast range the dtype depends on what the marks switched on.
        skipped = {n for group in autocast_ranges(module.graph) for n in group}
        for node in module.graph.nodes:
            if node.op not in ("call_function", "call_method") or node.target in CACHE_OPS:
                continue
            if node in skipped or is_random(node):
                continue
            kept = value_of(node)
            try:
                fresh = _recomputed(node)
            except _RefusedInputs as refused:
                yield Violation("an op that runs on its inputs", str(refused), (node_text(node),))
                continue
            if fresh is not None and isinstance(kept, Tensor) and _meta(kept) != _meta(fresh):
                yield Violation(
                    f"{_shown(fresh)} by recomputation", _shown(kept), (node_text(node),)
                )


def _recomputed(node: fx.Node) -> Tensor | None:
    try:
        made = recompute(node)
    except Exception as refused:  # an op may refuse its inputs with any exception
        raise _RefusedInputs(str(refused).splitlines()[0]) from refused
    return made if isinstance(made, Tensor) else None


class _RefusedInputs(Exception):
    """An op does not run on the fake values of its inputs."""


def _meta(value: Tensor) -> tuple[Any, ...]:
    return (shape_of(value), value.dtype, value.device.type)


def v2(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V2: both arms of a cond yield the same number of values, equal in shape, stride and dtype."""
    for cond, (hit, miss) in all_arms(graph):
        sides = [[value_of(n) for n in output_node(m.graph).args[0]] for m in (hit, miss)]  # pyright: ignore[reportGeneralTypeIssues, reportOptionalIterable]
        if len(sides[0]) != len(sides[1]):
            got = f"{len(sides[0])} from hit, {len(sides[1])} from miss"
            yield Violation("the same number of values from both arms", got, (node_text(cond),))
            continue
        for h, m in zip(*sides, strict=True):
            if isinstance(h, Tensor) and isinstance(m, Tensor):
                if _meta(h) == _meta(m) and (same_layout(h, m) or not is_static(m)):
                    continue
                got = f"{_shown(h)} from hit, {_shown(m)} from miss"
            else:
                got = f"{type(h).__name__} from hit, {type(m).__name__} from miss"
            yield Violation(
                "equal shape, stride, dtype and device from both arms", got, (node_text(cond),)
            )


def _shown(value: Tensor) -> str:
    text = type_text(shape_of(value), value.dtype)
    stride = "" if is_dense(value) else f" stride {stride_of(value)}"
    return f"{text}{stride} on {value.device.type}"


def v3(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V3: a forecast reads no more entries than the plan has written before it."""
    if ctx.plan is None:
        return
    held = {s.owner: s.history for s in graph.slots}
    for schedule in ctx.plan.regions:
        for step, row in enumerate(schedule.weights):
            if step in schedule.computed:
                continue
            used = max((k + 1 for k, w in enumerate(row) if w != 0.0), default=0)
            done = sum(c < step for c in schedule.computed)
            depth = held.get(schedule.region, schedule.history)
            if used > min(done, depth):
                where = f"step {step} of {schedule.region}"
                got = f"{where} reads {used}, {done} written, slot x{depth}"
                yield Violation("a forecast reads no more entries than were written", got)


def v4(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V4: a slot is written at most once in a step."""
    steps = [("step", graph.module, Counter[str]())]
    steps += [("variant", v.module, Counter(v.writes)) for v in graph.variants]
    for where, whole, writes in steps:
        for module in (whole, *(miss for _, _, miss in arms_of(whole))):
            for node in module.graph.nodes:
                if node.target is cache_write:
                    writes[str(cast(fx.Node, node.args[0]).meta["slot"])] += 1
        for slot, count in writes.items():
            if count > 1:
                yield Violation(f"one write of ${slot} in a {where}", f"{count} writes")


def v5(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V5: what a variant returns is no view of a slot or of a remembered value."""
    modules = [v.module for v in graph.variants]
    held = {InputKind.SLOT: "a slot", InputKind.HOISTED: "a hoisted value"}
    for module in modules + [arm for _, arms in all_arms(graph) for arm in arms]:
        arm = module not in modules
        for node in flat_nodes(_results(module, arm)):
            for root in storage_roots(node):
                owner = held.get(cast(InputKind, kind_of(root)))
                # An arm may yield a view of what a prologue made; only a user could write to it.
                if owner is None or (arm and kind_of(root) is not InputKind.SLOT):
                    continue
                line = node_text(node) if node.op != "placeholder" else f"return %{node.name}"
                got = f"%{node.name} is a view of {owner}"
                yield Violation("outputs that own their storage", got, (line,))


def _results(module: fx.GraphModule, arm: bool) -> Any:
    """What the caller gets: an arm yields it, a variant returns it beside the values to write."""
    returned = output_node(module.graph).args[0]
    return returned if arm else cast("tuple[Any, ...]", returned)[0]


def v6(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V6: a predicate is known before its region runs."""
    for cond, _ in all_arms(graph):
        guarded = set(graph.region(cond.meta["region"]).nodes) if graph.regions else set[str]()
        todo, seen = [cast(fx.Node, cond.args[0])], set[fx.Node]()
        while todo:
            node = todo.pop()
            if node in seen:
                continue
            seen.add(node)
            if node.name in guarded:
                got = f"%{cast(fx.Node, cond.args[0]).name} reads %{node.name}"
                yield Violation("a predicate known before its region runs", got, (node_text(cond),))
                return
            todo.extend(node.all_input_nodes)


def v7(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V7: a cached region draws no random numbers and writes nothing."""
    for _, (_, miss) in all_arms(graph):
        for node in miss.graph.nodes:
            own = node.target is cache_write or is_autocast_mark(node)
            impure = node.op.startswith("call") and (node.is_impure() or bool(written(node)))
            if is_random(node) or (impure and not own):
                yield Violation(
                    "no random draw or mutation in a cached region", node.name, (node_text(node),)
                )


def v8(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V8: what is tagged as stable, and what a prologue reads, has no path from what varies."""
    forbidden = {"condition": Depends.STEP | Depends.LATENT, "step": Depends.LATENT}
    for prologue in graph.prologues:
        for node in prologue.module.graph.nodes:
            if node.op == "placeholder" and depends_of(node) & forbidden[prologue.name]:
                got = f"it reads %{node.name}, which is {depends_of(node).stability}"
                yield Violation(f"a {prologue.name} prologue independent of what varies", got)
    if "dependence" not in graph.facts:
        return
    for node in graph.graph.nodes:
        floor = SOURCES.get(cast(InputKind, kind_of(node)), Depends.CONST)
        for arg in node.all_input_nodes:
            floor |= depends_of(arg)
        if node.op.startswith("call") and floor.rank > depends_of(node).rank:
            tag = depends_of(node).stability
            got = f"%{node.name} is tagged {tag}, its inputs are {floor.stability}"
            yield Violation(
                "no path from what varies into a stabler class", got, (node_text(node),)
            )


def v9(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V9: slots fit the budget. What a recording hands out is kept by nobody."""
    kept = (s for s in graph.slots if s.reference or s.region in graph.scheduled)
    total = sum(s.nbytes for s in kept)
    if ctx.slot_budget is not None and total > ctx.slot_budget:
        yield Violation(f"slots within {ctx.slot_budget} bytes", f"{total} bytes")


def v10(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V10: a cached region does not wait for the host."""
    modules = [v.module for v in graph.variants] + [m for _, arms in all_arms(graph) for m in arms]
    for module in modules:
        for node in module.graph.nodes:
            if is_sync(node):
                got = op_base(node)
                yield Violation("no host wait in a cached region", got, (node_text(node),))


def v11(graph: StepGraph, ctx: PassContext) -> Iterator[Violation]:
    """V11: the plan has a row for each step, and each step computes or forecasts."""
    if ctx.plan is None:
        return
    steps = len(ctx.plan.timesteps)
    for schedule in ctx.plan.regions:
        bad = [c for c in schedule.computed if not 0 <= c < steps]
        if len(schedule.weights) != steps or bad:
            got = f"{schedule.region}: {len(schedule.weights)} rows, computed steps outside: {bad}"
            yield Violation(f"a row for each of {steps} steps", got)
        for step, row in enumerate(schedule.weights):
            if step not in schedule.computed and not any(row):
                got = f"{schedule.region} neither computes nor forecasts step {step}"
                yield Violation("every step computed or forecast", got)
