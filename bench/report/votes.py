"""From votes to win rates with intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..bad_input import BadInput

Z95 = 1.959963984540054


@dataclass(frozen=True)
class WinRate:
    """How often a method was chosen; a tie is half a win. `low`, `high`: Wilson's 95% interval."""

    name: str
    wins: int
    losses: int
    ties: int
    rate: float
    low: float
    high: float


def wilson(share: float, count: int, z: float = Z95) -> tuple[float, float]:
    """Score interval of a share of `count` trials (Wilson, 1927); (0, 1) for none."""
    if count == 0:
        return 0.0, 1.0
    square = z * z / count
    middle = (share + square / 2) / (1 + square)
    half = z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def load_votes(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """Votes of all files.

    Raises:
        BadInput: a file is not what the blind page exports.

    """
    found: list[dict[str, Any]] = []
    for path in paths:
        try:
            document = json.loads(path.read_text())
            if document["what"] != "ditcache votes":
                raise KeyError("what")
            for vote in document["votes"]:
                if vote["choice"] not in (0, 1, None):
                    raise ValueError(f"choice is {vote['choice']!r}")
                found.append({"id": str(vote["id"]), "choice": vote["choice"]})
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BadInput(f"{path}: not votes exported from blind.html ({error})") from error
    return found


def win_rates(votes: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> list[WinRate]:
    """One entry a method, the best first; votes on unknown pairs are not counted."""
    methods = {pair["id"]: pair["methods"] for pair in pairs}
    counts: dict[str, list[int]] = {}
    for vote in votes:
        if vote["id"] not in methods:
            continue
        first, second = methods[vote["id"]]
        for name in (first, second):
            counts.setdefault(name, [0, 0, 0])
        if vote["choice"] is None:
            counts[first][2] += 1
            counts[second][2] += 1
            continue
        won, lost = (first, second) if vote["choice"] == 0 else (second, first)
        counts[won][0] += 1
        counts[lost][1] += 1
    rates: list[WinRate] = []
    for name, (wins, losses, ties) in counts.items():
        count = wins + losses + ties
        rate = (wins + ties / 2) / count
        rates.append(WinRate(name, wins, losses, ties, rate, *wilson(rate, count)))
    return sorted(rates, key=lambda rate: (-rate.rate, rate.name))
