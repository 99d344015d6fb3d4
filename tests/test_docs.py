"""The documentation names what there is: its links, its paths, its lists of files and options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import typer
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


def options_of() -> dict[str, set[str]]:
    """What each command takes on the command line."""
    from ditcache.bench.command import bench
    from ditcache.passes import opt
    from ditcache.runtime import cli

    verbs = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
    found = {f"ditcache {name}": verb for name, verb in verbs.items()}
    contest = typer.Typer()
    contest.command()(bench)
    found |= {"ditcache bench": typer.main.get_command(contest)}
    found |= {"ditcache-opt": typer.main.get_command(opt.app)}
    return {name: {o for p in verb.params for o in p.opts} for name, verb in found.items()}


def test_commands_have_the_options_that_they_are_shown_with():
    known = options_of()
    shown = 0
    for page in PAGES:
        text = page.read_text()
        for command, rest in re.findall(r"\b(ditcache-opt|ditcache [a-z]+) ([^`\n|#>]*)", text):
            for option in re.findall(r"(?<!\S)--?[a-z][\w-]*", rest):
                assert command in known, f"{page.name}: {command} {rest}"
                assert option in known[command], f"{page.name}: {command} {rest}"
                shown += 1
        for module in re.findall(r"python -m (?:ditcache\.)?((?:bench|models)[\w.]*)", text):
            path = ROOT.joinpath(*module.rstrip(".").split("."))
            assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
    assert shown > 20
