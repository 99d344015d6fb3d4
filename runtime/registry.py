"""Which session a model has: found by the model's parameters, which are held weakly."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .session import Session


class Registry:
    """Finds the session of a model by the identity of its parameters, weakly held."""

    def __init__(self) -> None:
        self._by_id: dict[int, tuple[weakref.ref[Tensor], Session]] = {}

    def find(self, tensors: Iterable[Tensor]) -> Session | None:
        """The session that any of these parameters belongs to."""
        for tensor in tensors:
            known = self._by_id.get(id(tensor))
            if known is not None and known[0]() is tensor:
                return known[1]
        return None

    def register(self, tensors: Iterable[Tensor], session: Session) -> None:
        """Let all these parameters lead to the session."""
        for tensor in tensors:
            key = id(tensor)
            self._by_id[key] = (
                weakref.ref(tensor, lambda _, k=key: self._by_id.pop(k, None)),
                session,
            )


registry = Registry()
