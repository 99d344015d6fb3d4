"""Pages with tables between marks, and the tables put there anew.

A block begins with `<!-- table: NAME ARGUMENTS -->` and ends with `<!-- end -->`; what stands
between is made by the function NAME of `TABLES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from . import compared, contests, single

PAGES = ("README.md", "docs/results.md")

TABLES: dict[str, Callable[..., str]] = {
    "demo": single.demo,
    "video": single.video,
    "coverage": single.coverage,
    "real-size": single.real_size,
    "overhead": single.overhead,
    "contest": contests.table,
    "contest-grid": contests.grid,
    "leads": contests.leads,
    "walls": contests.walls,
    "compare": compared.table,
    "gains": compared.gains,
    "recommended": compared.recommended,
}

_BLOCK = re.compile(r"(<!-- table: (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def rewritten(text: str, results: Path) -> str:
    """The page with every block made from the results.

    Raises:
        ValueError: a block names no table, or there is nothing to make it from.

    """

    def block(found: re.Match[str]) -> str:
        name, *arguments = found[2].split()
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are {', '.join(TABLES)}")
        try:
            made = TABLES[name](results, *arguments)
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"table {found[2]!r} cannot be made: {error!r}") from error
        return f"{found[1]}{made}\n{found[3]}"

    return _BLOCK.sub(block, text)
