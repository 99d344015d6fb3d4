"""lower-cond: conditionals whose predicate stays on the device, which decides them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .base import PassContext, PassResult
from .decided_step import can_decide, decided
from .guarded_step import guarded
from .ir import StepGraph, Variant
from .policies import device_limit


@dataclass(frozen=True)
class LowerCond:
    """Make the step that a device decides, beside the variants between which the host does.

    Its `cache.cond` has a predicate `i1 device`: on a CUDA device the miss arm becomes a
    conditional node of a captured graph, which overwrites what the hit arm gave; anywhere else the
    host reads the flag and branches. Where a probe decides, the predicate is that of the rule, a
    limit (`policies.device_limit`), and the miss arm writes the slots in place. Under a static plan
    it is that of the guard (`guarded_step`).

    Does nothing unless `ctx.on_device` or `ctx.guarded` asks for it, for rules that count steps,
    for histories of more than one value under a rule, and for several regions under a rule.

    Given::

        %cache_decide = cache.decide 0.1, %cache_probe : i1 host probe
        %cache_cond = cache.cond %cache_decide $blocks[1:2] $probe.0 {
          …
        }

    Result::

        variant 4 (decided, blocks[1:2]: forecast)  // 9.73 kMAC {
          …
          %cache_below = cache.below %cache_probe, %decide_limit, %decide_flag, %decide_running : i1 device
          %cache_cond = cache.cond %cache_below $blocks[1:2] $probe.0 {
            …
          }
          …
          yield ((%linear_7,), ())
        }
    """  # noqa: E501

    name: ClassVar[str] = "lower-cond"
    requires: ClassVar[frozenset[str]] = frozenset({"specialized"})
    ensures: ClassVar[frozenset[str]] = frozenset({"lowered"})

    def apply(self, graph: StepGraph, ctx: PassContext) -> PassResult:
        """Attach the step, where there is one."""
        facts = graph.facts | self.ensures
        made = _decided(graph, ctx)
        if made is None:
            return PassResult(graph.with_(facts=facts), False, {"conditionals": 0})
        done = graph.with_(variants=(*graph.variants, made), facts=facts)
        return PassResult(done, True, {"conditionals": 1})


def _decided(graph: StepGraph, ctx: PassContext) -> Variant | None:
    if ctx.plan is None:
        return None
    if ctx.plan.rule is None:
        return guarded(graph, len(ctx.plan.timesteps)) if ctx.guarded else None
    limit = device_limit(ctx.plan.rule)
    if not ctx.on_device or limit is None or not can_decide(graph):
        return None
    return decided(graph, limit)
