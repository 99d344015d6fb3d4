"""What a step is made of: work, weights and live bytes by region and by stability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from .cost import node_macs
from .ir import Depends, InputKind, Region, Slot, StepGraph, depends_of, kind_of, value_of
from .printer import macs_text
from .symbolic import tensor_bytes

CLASSES: tuple[str, ...] = ("const", "condition", "step", "volatile")


@dataclass(frozen=True)
class Share:
    """Work of one stability class: MACs, bytes of the weights that only such work reads, ops."""

    macs: int
    weight_bytes: int
    ops: int


def shares(graph: StepGraph) -> dict[str, Share]:
    """The step's work by what it changes with.

    A weight counts for the most volatile work that reads it, so that the classes add up to all
    weights that are read. Needs the dependence analysis; the graph must not be rewritten yet.
    """
    macs: dict[str, int] = dict.fromkeys(CLASSES, 0)
    ops: dict[str, int] = dict.fromkeys(CLASSES, 0)
    readers: dict[fx.Node, Depends] = {}
    for node in graph.graph.nodes:
        if not node.op.startswith("call"):
            continue
        depends = depends_of(node)
        macs[depends.stability] += node_macs(node)
        ops[depends.stability] += 1
        for arg in node.all_input_nodes:
            if kind_of(arg) is InputKind.PARAMETER:
                readers[arg] = readers.get(arg, Depends.CONST) | depends
    weights: dict[str, int] = dict.fromkeys(CLASSES, 0)
    for parameter, depends in readers.items():
        weights[depends.stability] += tensor_bytes(value_of(parameter))
    return {c: Share(macs[c], weights[c], ops[c]) for c in CLASSES}


def stats_text(graph: StepGraph, slots: Sequence[Slot] = ()) -> str:
    """The table that --stats prints: totals by class, one line for each region, the slots' bytes.

    `slots` are those that the plan inserted, if there is one.
    """
    found = shares(graph)
    total = sum(s.macs for s in found.values())
    weights = sum(s.weight_bytes for s in found.values())
    ops = sum(s.ops for s in found.values())
    lines = [
        f"{graph.name}: {2 * total / 1e12:.4g} TFLOP a step ({macs_text(total)}), "
        f"{bytes_text(weights)} of weights, {ops} ops, {len(graph.regions)} regions",
        "",
        f"{'changes with':<22}{'MACs':>12}{'share':>9}{'weights':>12}{'share':>9}{'ops':>8}",
    ]
    words = {
        "const": "nothing (const)",
        "condition": "the prompt (condition)",
        "step": "the timestep (step)",
        "volatile": "the latents (volatile)",
    }
    for name, share in found.items():
        lines.append(
            f"{words[name]:<22}{macs_text(share.macs):>12}{percent(share.macs, total):>9}"
            f"{bytes_text(share.weight_bytes):>12}{percent(share.weight_bytes, weights):>9}"
            f"{share.ops:>8}"
        )
    lines += ["", *_region_table(graph.regions, total)]
    if slots:
        stored = ", ".join(dict.fromkeys(s.format or "the model's types" for s in slots))
        size = bytes_text(sum(s.nbytes for s in slots))
        lines += ["", f"slots: {len(slots)}, {size} in {stored}"]
    return "\n".join(lines) + "\n"


def _region_table(regions: tuple[Region, ...], total: int) -> list[str]:
    width = max((len(r.name) for r in regions), default=6) + 2
    head = f"{'region':<{width}}{'kind':<10}{'MACs':>12}{'share':>8}{'weights':>12}{'live':>12}"
    lines = [head + "  stability"]
    for r in regions:
        refused = f"  (not cacheable: {r.refusal})" if r.refusal else ""
        lines.append(
            f"{r.name:<{width}}{r.kind:<10}{macs_text(r.macs):>12}{percent(r.macs, total):>8}"
            f"{bytes_text(r.weight_bytes):>12}{bytes_text(r.live_bytes):>12}  {r.label}{refused}"
        )
    return lines


def percent(part: int, whole: int) -> str:
    """`12.3%`; `-` where there is no whole."""
    return f"{100 * part / whole:.2f}%" if whole else "-"


def bytes_text(count: int) -> str:
    """Bytes in decimal units, as weight files are quoted."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return (
                f"{count / size:.3g} {unit}" if count < 100 * size else f"{count / size:.0f} {unit}"
            )
    return f"{count} B"
