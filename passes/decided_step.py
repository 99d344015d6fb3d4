"""A step of a policy that decides by data, with a conditional that the device decides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx

from .cost import total_macs
from .ir import Depends, InputKind, StepGraph, Variant, kind_of, placeholders, value_of
from .made_nodes import state_input
from .modules import arms_of, devices_of, drop_dead, module_of
from .ops import cache_below, cache_cond, cache_decide, cache_write
from .policies import Limit


def decided(graph: StepGraph, limit: Limit) -> Variant:
    """The step itself, its predicate taken from the probe on the device.

    What the miss arm writes goes into the slots there, where it runs; what is written in either
    case is handed out as by any other variant.
    """
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    copy: Callable[[fx.Node], fx.Node] = env.__getitem__
    for node in placeholders(graph.graph):
        env[node] = new.node_copy(node, copy)
    ring = next(value_of(n) for n in env.values() if kind_of(n) is InputKind.SLOT)
    state = [
        state_input(new, "decide", part, kind, (size, dtype), ring)
        for part, kind, size, dtype in (
            ("limit", InputKind.GRID, 1, torch.float32),
            ("flag", InputKind.STATE, 1, torch.int32),
            ("running", InputKind.STATE, 4, torch.float32),
        )
    ]
    writes: dict[str, fx.Node] = {}
    for node in graph.graph.nodes:
        if node.target is cache_decide:
            _, probe = cast("tuple[float, fx.Node]", node.args)
            more: dict[str, Any] = {"accumulate": True} if limit.accumulate else {}
            env[node] = new.call_function(cache_below, (env[probe], *state), more)
            env[node].meta.update(depends=Depends.LATENT, runs="device")
        elif node.target is cache_write:
            slot, value = cast("tuple[fx.Node, fx.Node]", node.args)
            writes[str(slot.meta["slot"])] = env[value]
        elif node.op == "output":
            results: Any = fx.map_arg(node.args[0], copy)
            new.output((results, tuple(writes.values())))
        elif node not in env:
            env[node] = new.node_copy(node, copy)
    drop_dead(new)
    module = module_of(graph.module, new)
    for cond, hit, _ in arms_of(module):
        cond.meta["macs"] = total_macs(hit.graph.nodes)
    modes = (True,) * len(graph.scheduled)
    return Variant(modes, module, tuple(writes), total_macs(new.nodes), "decided")


def can_decide(graph: StepGraph) -> bool:
    """Whether a device can decide the step: one device, and one region with its last value alone.

    Which entry of a longer history is the newest, the host knows, and only if it decided.
    """
    conds = [n for n in graph.graph.nodes if n.target is cache_cond]
    single = len(conds) == 1 and all(s.history == 1 for s in graph.slots)
    return single and len(devices_of(graph.module)) == 1
