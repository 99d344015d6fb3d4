"""Published tables: the pages show what the committed results say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ditcache.bench.publish.pages import PAGES, rewritten

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


@pytest.mark.parametrize("page", PAGES)
def test_pages_show_the_results(page: str):
    text = (ROOT / page).read_text()
    assert "<!-- table: " in text
    assert rewritten(text, RESULTS) == text, "run `python -m bench.publish`"


def test_a_block_is_made_from_its_result(tmp_path: Path):
    row = json.loads((RESULTS / "demo.json").read_text())["rows"][1]
    made = row | {"name": "2x", "computed_steps": 7, "steps": 14, "speedup": 1.234}
    (tmp_path / "demo.json").write_text(json.dumps({"rows": [made]}))
    page = "before\n<!-- table: demo -->\nold\n<!-- end -->\nafter\n"
    text = rewritten(page, tmp_path)
    assert "| 2x | 7 of 14 |" in text
    assert "1.23x" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert rewritten(text, tmp_path) == text


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("weather", "there are demo"),
        ("contest nothing 3", "cannot be made"),
        ("contest", "argument"),
    ],
)
def test_a_wrong_block_is_named(block: str, said: str):
    with pytest.raises(ValueError, match=said):
        rewritten(f"<!-- table: {block} -->\n<!-- end -->\n", RESULTS)
