"""The documentation names what there is: its links, its paths, its lists of files and options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
from ditcache.passes import pipeline

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "bench" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = "passes|runtime|kernels|bench|models|tests|docs"
STAND_INS = {"kernels/x.py", "kernels/_x_kernel.py"}  # for a kernel's name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    for link in links:
        assert link.startswith("http") or (page.parent / link).exists(), link
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./*-]+)`", text):
        assert path in STAND_INS or (ROOT / path).exists() or list(ROOT.glob(path)), path


@pytest.mark.parametrize("folder", ["passes", "runtime"])
def test_the_layout_lists_every_file(folder):
    text = (ROOT / "docs" / "README.md").read_text()
    section = text.split(f"## {folder}:")[1].split("\n## ")[0]
    listed = set(re.findall(r"`([\w*/]+\.py)`", section))
    # A pass has a page of its own, and is there under "one file a pass".
    passes = {Path(f"{type(p).__module__.rsplit('.', 1)[1]}.py") for p in pipeline.DEFAULT}
    files = {Path(path.name) for path in (ROOT / folder).glob("*.py")} - {Path("__init__.py")}
    missing = {f for f in files - passes if not any(f.match(pattern) for pattern in listed)}
    assert not missing
    assert not {name for name in listed if "*" not in name and not (ROOT / folder / name).exists()}


def test_every_policy_has_its_line():
    from ditcache.passes import policies
    from ditcache.runtime.config import EXACT_POLICIES

    readme, page = PAGES[0].read_text(), (ROOT / "docs" / "policies.md").read_text()
    for name in (*policies.ZOO, *EXACT_POLICIES):
        assert f"`{name}`" in readme
    rows = re.findall(r"^\| `([\w-]+)` \|.*\| `([^|]*)` \|$", page, re.M)
    assert {name for name, _ in rows} == set(policies.ZOO)
    for name, defaults in rows:
        shown = eval(f"dict({defaults})")
        made = {f.name: f.default for f in dataclasses.fields(policies.ZOO[name])}
        assert shown.items() <= made.items(), name
        # First Block Cache is DBCache with but one knob.
        assert len(shown) == (1 if name == "firstblockcache" else len(made)), name
