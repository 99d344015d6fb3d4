"""`python -m bench.publish` writes every published table anew from `bench/results`.

With `--check` nothing is written, and the exit code is 1 if a page differs from the results.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .pages import PAGES, rewritten

ROOT = Path(__file__).parents[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is stale")
    given = parser.parse_args()
    stale = 0
    for name in PAGES:
        page = ROOT / name
        before = page.read_text()
        after = rewritten(before, ROOT / "bench" / "results")
        if after == before:
            continue
        stale += 1
        if not given.check:
            page.write_text(after)
        print(f"{name}: {'stale' if given.check else 'written'}")
    return 1 if given.check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
