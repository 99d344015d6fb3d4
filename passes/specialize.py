"""specialize: one straight-line program for each choice of compute or forecast in the plan."""

from __future__ import annotations

import operator
from collections.abc import Set
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx

from .base import PassContext, PassResult
from .cost import total_macs
from .ir import InputKind, StepGraph, Variant, kind_of, output_node, placeholders, value_of
from .modules import drop_dead, module_of
from .ops import cache_cond, cache_decide, cache_probe, cache_write
from .plan_format import Plan
from .probes import upstream


@dataclass(frozen=True)
class Specialize:
    """Partially evaluate the predicates: a variant for each mode vector in the plan.

    Inlines the chosen arm of every `cache.cond`, turns writes into a second output (the runtime
    pushes them into the ring after the call, so the program stays functional), and drops dead
    code. The all-compute variant always exists: it is what runs when in doubt.

    Where a probe decides, a step becomes a head, which computes the probes and all that they need,
    and one tail for each outcome. What a tail needs of the head is carried over: nothing is
    computed twice.

    Given::

        %cache_cond = cache.cond %plan_blocks_0_mlp $blocks.0.mlp {
          hit:
          …
          miss:
          …
        }
        %getitem_1 = getitem(%cache_cond, 0) : f32[2,16,8] @blocks.0.mlp
        %h = add(%x, %getitem_1) : f32[2,16,8] @blocks.0
        …
        return (%linear_4,)

    Result::

        variant 0 (blocks.0.mlp: compute) writes $blocks.0.mlp  // 9.73 kMAC {
          …
          %mul = mul(%x, %emb) : f32[2,16,8] @blocks.0
          %linear_3 = linear(%mul, …) : f32[2,16,8] @blocks.0.mlp
          %h = add(%x, %linear_3) : f32[2,16,8] @blocks.0
          …
          yield ((%linear_4,), (%linear_3,))
        }
        variant 1 (blocks.0.mlp: forecast)  // 7.68 kMAC {
          …
          %cache_forecast = cache.forecast $blocks.0.mlp, %weights_blocks_0_mlp : f32[2,16,8]
          %h = add(%x, %cache_forecast) : f32[2,16,8] @blocks.0
          …
          yield ((%linear_4,), ())
        }
    """

    name: ClassVar[str] = "specialize"
    requires: ClassVar[frozenset[str]] = frozenset({"cached"})
    ensures: ClassVar[frozenset[str]] = frozenset({"specialized"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach the variants; the step graph itself stays for printing."""
        modes = modes_of(graph, ctx.plan)
        variants = [_variant(graph, m) for m in sorted(modes)]
        if any(n.target is cache_probe for n in graph.graph.nodes):
            variants += _staged(graph, sorted(modes | {(True,) * len(graph.scheduled)}))
        done = graph.with_(variants=tuple(variants), facts=graph.facts | self.ensures)
        return PassResult(done, True, {"variants": len(variants)})


def modes_of(graph: StepGraph, plan: Plan | None) -> set[tuple[bool, ...]]:
    """The mode vectors (true: forecast) that need no decision, all-compute included.

    Under a rule that decides by data that one is all there is: of the other steps the head comes
    first.
    """
    count = len(graph.scheduled)
    modes: set[tuple[bool, ...]] = {(False,) * count}
    if plan is None or plan.rule is not None:
        return modes
    computed = {s.region: set(s.computed) for s in plan.regions}
    regions = [computed[graph.schedules.get(name, name)] for name in graph.scheduled]
    for step in range(len(plan.timesteps)):
        modes.add(tuple(step not in steps for steps in regions))
    return modes


def _staged(graph: StepGraph, wanted: list[tuple[bool, ...]]) -> list[Variant]:
    """The head, and a tail for each mode vector."""
    order = list(graph.graph.nodes)
    probes = [n for n in order if n.target is cache_probe]
    inside = upstream(probes)
    for node in order:  # a chunk's parts go with their chunk: tuples are not carried
        if node.target is operator.getitem and node.args[0] in inside:
            inside.add(node)
    tails = [_variant(graph, modes, inside) for modes in wanted]
    carried = tuple(
        n.name for n in order if n in inside and any(n.name in t.carried for t in tails)
    )
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in order:
        if node in inside or node.op == "placeholder":
            env[node] = new.node_copy(node, env.__getitem__)
    by_name = {n.name: env[n] for n in inside}
    new.output((tuple(env[p] for p in probes), tuple(by_name[n] for n in carried)))
    head = _finished(graph, new, (), (), "head", carried)
    return [head, *tails]


def _variant(
    graph: StepGraph, modes: tuple[bool, ...], head: Set[fx.Node] | None = None
) -> Variant:
    new = fx.Graph()
    env: dict[fx.Node, Any] = {}
    writes: dict[str, fx.Node] = {}
    mode = dict(zip(graph.scheduled, modes, strict=True))
    for node in graph.graph.nodes if head is not None else ():
        if node in head and isinstance(value_of(node), CARRIED):
            env[node] = new.placeholder(node.name)
            env[node].meta = {k: v for k, v in node.meta.items() if k != "macs"}
            env[node].meta["kind"] = InputKind.CARRIED
    for node in graph.graph.nodes:
        if node in env or node.target in (cache_probe, cache_decide):
            continue
        if head is not None and node in head:
            continue  # a tuple, whose parts are carried
        if node.op == "get_attr" and all(u.target is cache_cond for u in node.users):
            continue
        if node.target is cache_cond:
            arm = node.args[1] if mode[node.meta["region"]] else node.args[2]
            body = cast(fx.GraphModule, graph.module.get_submodule(str(arm.target)))
            env[node] = _inline(body.graph, node.args[3], new, env, writes)
        elif isinstance(parts := _parts(node, env), tuple):
            env[node] = parts[cast(int, node.args[1])]
        elif node.target is cache_write:
            writes[_slot_name(node)] = env[cast(fx.Node, node.args[1])]
        elif node.op == "output":
            results = fx.map_arg(node.args[0], env.__getitem__)
            new.output((results, tuple(writes.values())))
        else:
            env[node] = new.node_copy(node, env.__getitem__)
    stage = "whole" if head is None else "tail"
    return _finished(graph, new, modes, tuple(writes), stage, None)


CARRIED = (Tensor, int, float, bool, torch.SymInt, torch.SymFloat)


def _finished(  # noqa: PLR0917
    graph: StepGraph,
    new: fx.Graph,
    modes: tuple[bool, ...],
    writes: tuple[str, ...],
    stage: str,
    carried: tuple[str, ...] | None,
) -> Variant:
    """The variant of a whole graph, without dead code and unread inputs."""
    drop_dead(new)
    module = module_of(graph.module, new)
    if carried is None:
        carried = tuple(n.name for n in placeholders(new) if kind_of(n) is InputKind.CARRIED)
    return Variant(modes, module, writes, total_macs(new.nodes), stage, carried)


def _parts(node: fx.Node, env: dict[fx.Node, Any]) -> Any:
    """The inlined results if the node projects a cond that was inlined."""
    if node.op == "call_function" and node.args and isinstance(node.args[0], fx.Node):
        return env.get(node.args[0])
    return None


def _slot_name(write: fx.Node) -> str:
    return str(cast(fx.Node, write.args[0]).meta["slot"])


def _inline(
    body: fx.Graph,
    operands: Any,
    new: fx.Graph,
    outer: dict[fx.Node, Any],
    writes: dict[str, fx.Node],
) -> tuple[Any, ...]:
    """Copy an arm into `new`; gives its yielded values and adds its writes."""
    passed = iter(operands)
    local: dict[fx.Node, Any] = {}
    for node in body.nodes:
        if node.op == "placeholder":
            local[node] = outer[next(passed)]
        elif node.target is cache_write:
            writes[_slot_name(node)] = local[node] = local[node.args[1]]
        elif node.op == "output":
            return cast("tuple[Any, ...]", fx.map_arg(node.args[0], local.__getitem__))
        else:
            local[node] = new.node_copy(node, local.__getitem__)
    raise AssertionError(f"{output_node(body)}: an arm without an output")
