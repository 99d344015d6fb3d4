"""`ditcache report`: write the page, and a blind page for each document that has clips."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from ..arguments import writable
from ..bad_input import BadInput
from ..environment import write_json
from . import compare_section, sections
from .blind import blind_page, pairs
from .page import page
from .sources import find
from .votes import load_votes, win_rates

REPORT, BLIND, WIN_RATES = "report.html", "blind.html", "win-rates.json"


def run(folder: Path, output: Path | None, votes: list[Path], console: Console) -> int:
    """Write the pages; 0 when done, raises BadInput if there is nothing to report or count."""
    sources = find(folder)
    target = output or folder / REPORT
    if target.is_dir():
        raise BadInput(f"{target}: a folder; expected the file to write")
    writable(target.parent)
    parts: list[str] = []
    cast = load_votes(votes)
    if cast:
        known = [p for s in sources if s.document.get("clips") for p in pairs(s)]
        rates = win_rates(cast, known)
        ids = {pair["id"] for pair in known}
        unknown = sum(vote["id"] not in ids for vote in cast)
        if unknown:
            console.print(f"{unknown} of {len(cast)} votes are on pairs that are not here")
        cast = [vote for vote in cast if vote["id"] in ids]
        parts.append(sections.votes(rates, len(cast)))
        write_json(
            target.parent / WIN_RATES, {"votes": len(cast), "rates": [vars(r) for r in rates]}
        )
    makers = {
        "compare": compare_section.compare,
        "evaluate": sections.evaluate,
        "bench": sections.bench,
    }
    for source in sources:
        parts.append(makers[source.kind](source))
        if not source.document.get("clips"):
            continue
        text = blind_page(source)
        if text is not None:
            name = source.path.parent / BLIND
            name.write_text(text)
            console.print(f"blind A/B page: {name} ({len(text) / 2**20:.1f} MiB)")
    text = page("ditcache: measured", parts)
    target.write_text(text)
    console.print(f"{len(sources)} results on {target} ({len(text) / 2**20:.1f} MiB)")
    return 0
