"""lower-cond: what a conditional computes, apart, so that a device can decide whether it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import fx

from .base import PassContext, PassResult
from .cost import total_macs
from .guarded_step import guarded
from .ir import InputKind, StepGraph, Variant, kind_of, output_node, placeholders
from .modules import drop_dead, module_of
from .policies import device_limit


@dataclass(frozen=True)
class LowerCond:
    """Take from a tail that computes what it writes: the body that refreshes the slots.

    Where a probe decides and the rule is a limit (`policies.device_limit`), a step is the head, the
    decision, the body if it is to compute, and the tail that reads the slots in either case. There
    is no other arm and nothing to merge: on a CUDA device the body becomes a conditional node of a
    captured graph, anywhere else a branch on the host. Does nothing unless `ctx.on_device` asks for
    it, for rules that count steps, for histories of more than one value, for slots in a storage
    format, and for several regions.

    Given::

        variant 2 (tail, blocks[1:2]: compute) writes $blocks[1:2] $probe.0  // 9.73 kMAC {
          …
          %h_1 = add(%x_1, %linear_6) : f32[2,16,8] @blocks.1
          %sub_1 = sub(%h_1, %h) : f32[2,16,8]
          %linear_7 = linear(%h_1, …) : f32[2,16,8] @out
          yield ((%linear_7,), (%sub_1, %sub))
        }

    Result::

        variant 4 (body, blocks[1:2]: compute) writes $blocks[1:2] $probe.0  // 7.68 kMAC {
          …
          %h_1 = add(%x_1, %linear_6) : f32[2,16,8] @blocks.1
          %sub_1 = sub(%h_1, %h) : f32[2,16,8]
          yield ((), (%sub_1, %sub))
        }
    """

    name: ClassVar[str] = "lower-cond"
    requires: ClassVar[frozenset[str]] = frozenset({"specialized"})
    ensures: ClassVar[frozenset[str]] = frozenset({"lowered"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach the body, where there is one."""
        facts = graph.facts | self.ensures
        if ctx.guarded and ctx.plan is not None and ctx.plan.rule is None:
            step = guarded(graph, len(ctx.plan.timesteps))
            variants = graph.variants if step is None else (*graph.variants, step)
            done = graph.with_(variants=variants, facts=facts)
            return PassResult(done, step is not None, {"conditionals": int(step is not None)})
        rule = ctx.plan.rule if ctx.plan is not None else None
        plain = all(s.history == 1 and not s.format for s in graph.slots)
        single = len(graph.scheduled) == 1 and plain
        if not ctx.on_device or rule is None or not single or device_limit(rule) is None:
            return PassResult(graph.with_(facts=facts), False, {"conditionals": 0})
        tails = {v.modes: v for v in graph.variants if v.stage == "tail"}
        made = _body(graph, tails[False,], tails[True,])
        done = graph.with_(variants=(*graph.variants, made), facts=facts)
        return PassResult(done, True, {"conditionals": 1})


def _body(graph: StepGraph, miss: Variant, hit: Variant) -> Variant:
    """What the computing tail writes and the other one does not."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in miss.module.graph.nodes:
        if node.op != "output":
            env[node] = new.node_copy(node, env.__getitem__)
    _, written = cast("tuple[Any, tuple[fx.Node, ...]]", output_node(miss.module.graph).args[0])
    wanted = {
        slot: node
        for slot, node in zip(miss.writes, written, strict=True)
        if slot not in hit.writes
    }
    new.output(((), tuple(env[node] for node in wanted.values())))
    drop_dead(new)
    carried = tuple(n.name for n in placeholders(new) if kind_of(n) is InputKind.CARRIED)
    macs = total_macs(new.nodes)
    return Variant(miss.modes, module_of(graph.module, new), tuple(wanted), macs, "body", carried)
