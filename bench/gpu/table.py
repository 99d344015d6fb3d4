"""The results as a document and a table, with what follows from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..ledger import Record

HEAD = (
    "| model | way | computed | loop s | x compile | realised | computed ms | skipped ms | "
    "gap ms | host ms | peak GB | captures |"
)


def rows(records: Iterable[Record]) -> list[Record]:
    """Each record with `speedup` over torch.compile, `realised` and `skipped_share`.

    realised: how much faster than ditcache's exact tier the loop ran, over the steps by which fewer
    were computed; 1 where a skipped step costs nothing. skipped_share: a skipped step over a
    computed one, on the device.
    """
    found = [r for r in records if "way" in r]
    by = {(r["model"], r["way"]): r for r in found if "loop" in r}
    for r in found:
        if "loop" not in r:
            continue
        base = by.get((r["model"], "compile"))
        exact = by.get((r["model"], "ditcache exact"))
        r["speedup"] = base["loop"] / r["loop"] if base else None
        if exact and r["computed_steps"] < r["steps"]:
            r["realised"] = exact["loop"] / r["loop"] * r["computed_steps"] / r["steps"]
        if r.get("skipped") and r.get("computed"):
            r["skipped_share"] = r["skipped"] / r["computed"]
    return found


def markdown(records: Iterable[Record]) -> str:
    """One line for each model and way."""
    lines = [HEAD, "|---" * (HEAD.count("|") - 1) + "|"]
    for r in rows(records):
        if "error" in r:
            lines.append(f"| {r['model']} | {r['way']} | {r['error'].splitlines()[0]} |" + " |" * 9)
            continue
        peak = r["peak_bytes"]
        cells: list[Any] = [
            r["model"],
            r["way"],
            f"{r['computed_steps']} of {r['steps']}",
            f"{r['loop']:.3f}",
            _number(r.get("speedup"), 2),
            _number(r.get("realised"), 3),
            *(_number(r[key], 2, 1e3) for key in ("computed", "skipped", "gap", "host")),
            _number(peak, 1, 1e-9),
            r.get("captures", "–"),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def _number(value: float | None, digits: int, scale: float = 1.0) -> str:
    return "–" if value is None else f"{value * scale:.{digits}f}"
