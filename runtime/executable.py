"""A variant ready to run, with the places that its inputs come from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from ..passes.ir import InputKind, Variant, kind_of
from .capture import InputUse
from .slots import SlotSet

Rows = Mapping[str, Tensor]  # region -> f32[K], the forecast weights in the ring's physical order


@dataclass(frozen=True)
class Ref:
    """Where an input comes from: `arg` i; by name `slot`, `row`, `hoisted`, `carried`, `state`."""

    source: str
    index: int = 0
    name: str = ""


@dataclass(frozen=True)
class Executable:
    """A lowered variant with its inputs resolved."""

    variant: Variant
    run: Callable[..., Any]
    inputs: tuple[Ref, ...]
    uses: tuple[InputUse, ...]  # the same, of a capture
    prologues: tuple[str, ...]  # those whose values it reads, in order


def gather(
    refs: Sequence[Ref],
    args: Sequence[Any],
    slots: SlotSet | None,
    rows: Rows,
    named: Mapping[str, Any],
) -> list[Any]:
    """The values that inputs stand for; `named` are hoisted and carried ones, and a state's."""
    values: list[Any] = []
    for ref in refs:
        if ref.source == "arg":
            values.append(args[ref.index])
        elif ref.source in ("hoisted", "carried", "state"):
            values.append(named[ref.name])
        elif ref.source == "row":
            values.append(rows[ref.name])
        else:
            assert slots is not None
            values.append(slots.rings[ref.name].buffer)
    return values


_USES = {
    InputKind.PARAMETER: InputUse.WEIGHT,
    InputKind.SLOT: InputUse.SLOT,
    InputKind.CONDITION: InputUse.KEPT,
    InputKind.HOISTED: InputUse.KEPT,
    InputKind.WEIGHTS: InputUse.KEPT,
    InputKind.GRID: InputUse.KEPT,
    InputKind.STATE: InputUse.SLOT,
}


def use_of(node: fx.Node) -> InputUse:
    """How a capture gets the input that a placeholder stands for."""
    kind = kind_of(node)
    return InputUse.VALUE if kind is None else _USES.get(kind, InputUse.VALUE)
