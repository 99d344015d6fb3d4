"""A variant ready to run, with the places that its inputs come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..passes.ir import Variant
from .capture import InputUse
from .cuda_graphs import Captured


@dataclass(frozen=True)
class Ref:
    """Where an input comes from: `arg` i, or by name from `slot`, `row`, `hoisted`, `carried`."""

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

    @property
    def plain(self) -> Callable[..., Any]:
        """What runs, without a capture of its own: for what is part of a larger one."""
        return self.run.run if isinstance(self.run, Captured) else self.run
