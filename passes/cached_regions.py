"""Which regions a graph caches or records, with their slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch import Tensor, fx

from ..kernels.formats import format_for
from ..kernels.launch import needs_fp8
from .base import PassError
from .ir import Region, Slot, StepGraph, value_of
from .plan_format import RegionSchedule
from .probes import ProbeValue
from .roles import partners
from .selectors import resolve


@dataclass(frozen=True)
class Cached:
    """A region with its slots, and the live-in that each live-out's delta is taken from."""

    region: Region
    slots: tuple[Slot, ...]
    base: dict[str, str]  # live-out -> live-in, empty where outputs are cached


def bind(
    graph: StepGraph, region: Region, schedule: RegionSchedule, nodes: dict[str, fx.Node]
) -> Cached:
    """A scheduled region with its slots; PassError where its delta has no meaning."""
    slots = make_slots(region, nodes, schedule.history, schedule.region, schedule.what)
    return Cached(region, tuple(slots), deltas(graph, region, schedule.what))


def stored(cached: Cached, nodes: dict[str, fx.Node], name: str | None) -> Cached:
    """The region with its slots in a storage format, where that makes them smaller.

    PassError for a format that there is not, or that the device has no hardware for.
    """
    slots: list[Slot] = []
    for slot in cached.slots:
        try:
            kind = format_for(name, slot.dtype)
            if kind is not None:
                needs_fp8(kind.dtype, cast(Tensor, value_of(nodes[slot.value])).device)
        except ValueError as wrong:
            raise PassError(f"insert-cache: {wrong}") from None
        slots.append(slot if kind is None else replace(slot, format=kind.name))
    return replace(cached, slots=tuple(slots))


def deltas(graph: StepGraph, region: Region, what: str) -> dict[str, str]:
    """The live-in of each live-out where deltas are cached; PassError if one has none."""
    if what == "output":
        return {}
    found = partners(graph, region)
    for out in region.live_outs:
        if out not in found:
            raise PassError(
                f"insert-cache: no residual stream leads from a live-in of {region.name} to its "
                f'live-out %{out}, so its delta means nothing; plan its "output" instead'
            )
    return found


def recordings(
    graph: StepGraph, record: Sequence[str], inside: set[str], nodes: dict[str, fx.Node]
) -> list[Cached]:
    """What a recording asks for, where it can be had outside the conditionals."""
    found: list[Cached] = []
    for entry in record:
        kind = [r for r in graph.regions if r.kind == entry]
        selector = entry.removesuffix(" delta")
        what = "output" if selector == entry else "delta"
        for region in kind or _resolved(graph, selector):
            if region.refusal is not None or not inside.isdisjoint(region.live_outs):
                continue
            base = deltas(graph, region, what)
            if kind or entry == region.name:
                found.append(Cached(region, tuple(make_slots(region, nodes, 1)), base))
            else:  # all of a selector is one recording
                slots = make_slots(region, nodes, 1, entry, what)
                named = tuple(replace(s, name=f"{entry} {s.name}", group=entry) for s in slots)
                found.append(Cached(region, named, base))
    return found


def _resolved(graph: StepGraph, selector: str) -> tuple[Region, ...]:
    """What there is of a selector: of three roles that are asked for a model may lack one."""
    try:
        return resolve(graph, selector)
    except PassError:
        return ()


def make_slots(
    region: Region,
    nodes: dict[str, fx.Node],
    history: int,
    group: str = "",
    what: str = "output",
) -> list[Slot]:
    """One slot per live-out; a region with one live-out gives the slot its own name."""
    slots: list[Slot] = []
    group = "" if group == region.name else group
    for i, name in enumerate(region.live_outs):
        value = cast(Tensor, value_of(nodes[name]))
        slot = region.name if len(region.live_outs) == 1 else f"{region.name}.{i}"
        shape = tuple(value.shape)
        slots.append(Slot(slot, region.name, name, shape, value.dtype, history, group, what))
    return slots


def probe_slots(probes: Sequence[ProbeValue], nodes: dict[str, fx.Node]) -> dict[ProbeValue, Slot]:
    """One reference slot per probe."""
    found: dict[ProbeValue, Slot] = {}
    for probe in probes:
        value = cast(Tensor, value_of(nodes[probe.value]))
        found[probe] = Slot(
            probe.slot, probe.slot, probe.value, tuple(value.shape), value.dtype, 1,
            what="output" if probe.base is None else "delta",
            reference=probe.point.reference, measured=probe.point.measured,
        )  # fmt: skip
    return found
