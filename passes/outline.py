"""The outline of a model: what a policy has to know of it before it names regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outline:
    """Blocks in the chain, roles that branches have (attention first), whether a deep part is."""

    blocks: int
    roles: tuple[str, ...] = ()
    deep: bool = False

    def to_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"blocks": self.blocks, "roles": list(self.roles), "deep": self.deep}

    @staticmethod
    def from_json(data: Mapping[str, Any] | None) -> Outline | None:
        """What `to_json` wrote; None for a file that has none."""
        if data is None:
            return None
        return Outline(int(data["blocks"]), tuple(map(str, data["roles"])), bool(data["deep"]))
