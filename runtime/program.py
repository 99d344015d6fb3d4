"""A program: one graph under one plan, specialised, lowered and ready to run."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from ..kernels.formats import FORMATS
from ..passes.cost import total_macs
from ..passes.ir import InputKind, Prologue, StepGraph, kind_of, placeholders
from ..passes.modules import arms_of, devices_of
from .branches import unshared
from .captured import Captured
from .cuda_graphs import Graphs
from .dynamo import compile_lock
from .executable import Executable, Ref, Rows, gather, use_of
from .lower import lower
from .memo import PrologueMemo, storages
from .op_by_op import watched
from .slots import SlotSet
from .stats import Stats


class Program:
    """The variants of one step graph; lowers each on first use."""

    def __init__(
        self,
        graph: StepGraph,
        arguments: Sequence[str],
        inner: str,
        hoist_budget: int,
        stats: Stats,
        *,
        graphs: Graphs | None = None,
    ) -> None:
        self.graph = graph
        self._graphs = graphs
        self.scheduled = graph.scheduled
        self.histories = {s.name: s.history for s in graph.slots}
        self.formats = {s.name: FORMATS.get(s.format) for s in graph.slots}
        self.region_of = {s.name: s.owner for s in graph.slots}
        self.measured = frozenset(s.name for s in graph.slots if s.measured)
        self._switches = tuple(graph.schedules.get(name, name) for name in graph.scheduled)
        self._index = {name: i for i, name in enumerate(arguments)}
        self._inner = inner
        self._stats = stats
        self._ready: dict[tuple[str, str, tuple[bool, ...]], Executable] = {}
        self._variants = {(v.stage, v.modes): v for v in graph.variants}
        self._owner = {o: p.name for p in graph.prologues for o in p.outputs}
        self._memos: dict[str, tuple[Prologue, PrologueMemo, tuple[Ref, ...]]] = {}
        for prologue in graph.prologues:
            # Uncompiled: products with weights, which no compiler fuses, run once a prompt or step.
            run = self._timed(prologue.module, "eager")
            refs = self._refs(prologue.module.graph)
            self._memos[prologue.name] = (prologue, PrologueMemo(run, hoist_budget), refs)

    @property
    def full(self) -> tuple[bool, ...]:
        """The mode vector that computes everything."""
        return (False,) * len(self.scheduled)

    @property
    def _skips(self) -> tuple[bool, ...]:
        return (True,) * len(self.scheduled)

    @property
    def hoisted_macs(self) -> int:
        """MACs of all prologues."""
        return sum(p.macs for p in self.graph.prologues)

    @property
    def hoisted_bytes(self) -> int:
        """Bytes of remembered prologue results."""
        return sum(memo.nbytes for _, memo, _ in self._memos.values())

    def modes(self, schedules: Container[str]) -> tuple[bool, ...]:
        """The mode vector that forecasts the regions of these schedules."""
        return tuple(s in schedules for s in self._switches)

    def has(self, modes: tuple[bool, ...]) -> bool:
        """Whether the plan uses this mode vector."""
        return ("whole", modes) in self._variants or ("tail", modes) in self._variants

    def has_references(self, slots: SlotSet) -> bool:
        """Whether every slot that the head reads has been written."""
        head = placeholders(self._variants["head", ()].module.graph)
        reads = [str(n.meta["slot"]) for n in head if kind_of(n) is InputKind.SLOT]
        return all((ring := slots.rings.get(name)) is not None and ring.steps for name in reads)

    def executable(self, modes: tuple[bool, ...], stage: str = "whole") -> Executable:
        """The lowered variant of a mode vector; compiles on first use."""
        key = "eager" if watched() else self._inner, stage, modes
        ready = self._ready.get(key)
        if ready is None:
            with compile_lock:
                ready = self._ready.get(key)  # another thread was faster
                if ready is None:
                    ready = self._ready[key] = self._lowered(*key)
        return ready

    def _lowered(self, inner: str, stage: str, modes: tuple[bool, ...]) -> Executable:
        variant = self._variants[stage, modes]
        refs = self._refs(variant.module.graph)
        wanted = {self._owner[r.name] for r in refs if r.source == "hoisted"}
        if "step" in wanted:
            needed = {self._owner[r.name] for r in self._memos["step"][2] if r.source == "hoisted"}
            wanted |= needed
        order = tuple(p.name for p in self.graph.prologues if p.name in wanted)
        run = self._timed(variant.module, inner)
        uses = tuple(use_of(n) for n in placeholders(variant.module.graph))
        graphs = None if watched() else self._graphs
        # A forecast alone is one kernel already.
        if graphs is not None and (variant.macs or stage == "decided"):
            run = Captured(run, uses, f"variant {_text(stage, modes)}", graphs)
            if len(devices := devices_of(variant.module)) > 1:
                # What is queued on the other one would run once, at the capture, and never again.
                run.give_up("work on two devices", " and ".join(sorted(devices)))
        return Executable(variant, run, refs, uses, order)

    def run(
        self,
        modes: tuple[bool, ...],
        args: Sequence[Any],
        slots: SlotSet | None,
        rows: Rows,
        carried: Mapping[str, Any] | None = None,
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run one variant; gives the step's outputs and the values to write, by slot.

        With what a head `carried` over it is the tail of that mode vector.
        """
        ready = self.executable(modes, "whole" if carried is None else "tail")
        (outputs, writes), hoisted = self._call(ready, args, slots, rows, carried or {})
        if hoisted:
            outputs = unshared(outputs, storages(hoisted.values()))
        return outputs, dict(zip(ready.variant.writes, writes, strict=True))

    def head(
        self, args: Sequence[Any], slots: SlotSet
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Run what precedes the decision; gives the probes (f32[2] each) and the carried values."""
        ready = self.executable((), "head")
        (probes, values), _ = self._call(ready, args, slots, {}, {})
        return probes, dict(zip(ready.variant.carried, values, strict=True))

    @property
    def decides(self) -> bool:
        """Whether there is a step of which a device decides whether it is computed."""
        return ("decided", self._skips) in self._variants

    def decided(
        self, args: Sequence[Any], slots: SlotSet, rows: Rows, state: Mapping[str, Tensor]
    ) -> tuple[Any, dict[str, Tensor]]:
        """Forecast everything, and compute after all where the device says so.

        `state`: what the device decides by, which tells afterwards how it decided. Gives the step's
        outputs and the values to write besides the slots that it refreshed by itself. The MACs of
        computing are for the caller to count (`decided_macs`).
        """
        ready = self.executable(self._skips, "decided")
        named = {f"state {part}": value for part, value in state.items()}
        (outputs, writes), hoisted = self._call(ready, args, slots, rows, named)
        outputs = unshared(outputs, storages(hoisted.values()))
        return outputs, dict(zip(ready.variant.writes, writes, strict=True))

    @cached_property
    def decided_macs(self) -> int:
        """MACs of what a device decides about."""
        arms = arms_of(self._variants["decided", self._skips].module)
        return sum(total_macs(miss.graph.nodes) for _, _, miss in arms)

    def _call(
        self,
        ready: Executable,
        args: Sequence[Any],
        slots: SlotSet | None,
        rows: Rows,
        carried: Mapping[str, Any],
    ) -> tuple[Any, dict[str, Tensor]]:
        """Run a variant after the prologues that it reads; gives its result and their values."""
        hoisted = self._hoisted(ready.prologues, args, rows)
        named = {**hoisted, **carried} if carried else hoisted
        result = ready.run(*gather(ready.inputs, args, slots, rows, named))
        self._stats.macs += ready.variant.macs
        return result, hoisted

    def _hoisted(
        self, prologues: Sequence[str], args: Sequence[Any], rows: Rows
    ) -> dict[str, Tensor]:
        """The values of prologues, in their order."""
        hoisted: dict[str, Tensor] = {}
        for name in prologues:
            prologue, memo, refs = self._memos[name]
            values, hit = memo.get(gather(refs, args, None, rows, hoisted))
            hoisted.update(zip(prologue.outputs, values, strict=True))
            if hit:
                self._stats.hoist_hits[name] += 1
            else:
                self._stats.hoist_runs[name] += 1
                self._stats.macs += prologue.macs
        return hoisted

    def forecast(self, slots: SlotSet, rows: Rows, sound: Callable[[Any], bool]) -> Any | None:
        """Outputs of the variant that forecasts all regions; None if that reads any model input.

        What reads slots and weights alone needs nothing else of a call. Outputs that are not
        `sound` give None too, and are not counted: the guarded way comes to them again.
        """
        ready = self._ready.get((self._inner, "whole", (True,) * len(self.full)))
        if ready is None or ready.prologues:
            return None
        if not all(r.source in ("slot", "row") for r in ready.inputs):
            return None
        outputs, writes = ready.run(*gather(ready.inputs, (), slots, rows, {}))
        if writes or not sound(outputs):
            return None
        self._stats.macs += ready.variant.macs
        return outputs

    def revalidate(self) -> None:
        """Drop hoisted values whose weights changed unseen."""
        for _, memo, _ in self._memos.values():
            memo.revalidate()

    def release(self) -> None:
        """Drop all hoisted values."""
        for _, memo, _ in self._memos.values():
            memo.clear()

    def _refs(self, graph: fx.Graph) -> tuple[Ref, ...]:
        refs: list[Ref] = []
        for node in placeholders(graph):
            kind = kind_of(node)
            if kind is InputKind.SLOT:
                refs.append(Ref("slot", name=str(node.meta["slot"])))
            elif kind is InputKind.WEIGHTS:
                refs.append(Ref("row", name=str(node.meta["region"])))
            elif kind is InputKind.HOISTED:
                refs.append(Ref("hoisted", name=node.name))
            elif kind in (InputKind.GRID, InputKind.STATE):
                refs.append(Ref("state", name=f"state {node.meta['part']}"))
            elif kind is InputKind.CARRIED:
                refs.append(Ref("carried", name=node.name))
            else:
                refs.append(Ref("arg", index=self._index[node.name]))
        return tuple(refs)

    def _timed(self, module: fx.GraphModule, inner: str) -> Callable[..., Any]:
        started = time.perf_counter()
        made = lower(module, inner)
        self._stats.lower_seconds += time.perf_counter() - started
        return made


def _text(stage: str, modes: tuple[bool, ...]) -> str:
    """A variant's name in messages: its stage, and c or f for each region."""
    return f"{stage} {''.join('f' if m else 'c' for m in modes)}".rstrip()
