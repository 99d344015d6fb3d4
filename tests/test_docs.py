"""The documentation names what there is: its links, its paths, its lists of files and options."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import ditcache
import pytest
import torch
import typer
from ditcache.passes import pipeline

from .runtime.helpers import Denoiser, generate, grid, noise, prompt, same

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
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text):
        target = page.parent / link if link else page
        if target.suffix == ".md" and not link.startswith("http"):
            assert anchor in anchors(target), f"{link}#{anchor}"
    for path in re.findall(rf"`((?:{FOLDERS})/[\w./*-]+)`", text):
        assert path in STAND_INS or (ROOT / path).exists() or list(ROOT.glob(path)), path


def anchors(page: Path) -> set[str]:
    """What its headings are called in links, by GitHub's rule."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


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


@pytest.fixture
def readme(monkeypatch, tmp_path, fresh_dynamo):
    """The README's code blocks, to run in an empty folder and without Inductor, which is slow."""
    compile_with_options = torch.compile

    def compiled(model, *, backend, options=None):
        options = {"inner": "eager", **(options or {})}
        return compile_with_options(model, backend=backend, options=options)

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.chdir(tmp_path)
    return re.findall(r"```python\n(.*?)```", PAGES[0].read_text(), re.S)


def block_with(blocks: list[str], text: str) -> str:
    (found,) = (block for block in blocks if text in block)
    return found


class Pipe:
    """As much of a pipeline as the README shows: a transformer, and a call with a prompt."""

    def __init__(self) -> None:
        self.transformer = Denoiser()

    def __call__(self, seed: int) -> torch.Tensor:
        with torch.no_grad():
            return generate(self.transformer, seed)


def test_the_readmes_first_lines_cache_from_the_third_generation_on(readme):
    names = {"pipe": Pipe(), "prompt": 0}
    exec(block_with(readme, "image = pipe(prompt)"), names)
    pipe = names["pipe"]
    pipe(1)
    assert not ditcache.summary(pipe.transformer).forecast
    pipe(2)
    assert ditcache.summary(pipe.transformer).forecast == 8, "of 12 steps 4 compute"


def test_the_readmes_plan_is_made_saved_and_compiled_with(readme):
    model = torch.compile(Denoiser(), backend="ditcache", options={"policy": "none"})
    names = {"ditcache": ditcache, "torch": torch, "model": model}
    with torch.no_grad():
        exec(block_with(readme, "calibrate"), names | {"generate": lambda i: generate(model, i)})
        for line in block_with(readme, 'options={"plan"').splitlines():
            names["model"] = Denoiser()
            exec(line, names)
            generate(names["model"])
            known = ditcache.summary(names["model"])
            assert bool(known.forecast) == ("plan" in line), line


def test_the_readmes_loop_computes_what_a_plain_one_does(readme):
    model = Denoiser()
    ts, w, text, empty = grid(), 2.0, prompt(0), prompt(1)
    names = {"torch": torch, "ditcache": ditcache, "w": w, "text": text, "empty": empty}
    made = torch.compile(model, backend="ditcache")

    def run(call):
        spans = iter([*ts.diff().tolist(), -float(ts[-1])])
        local = names | {"model": call, "x": noise(), "ts": [t[None] for t in ts]}
        local["step"] = lambda x, t, v: x + next(spans) * v
        exec(block_with(readme, "ditcache.branch"), local)
        return local["x"]

    same(run(lambda *args: made(*args)[0]), run(lambda *args: model(*args)[0]))
    known = ditcache.summary(made)
    assert (known.calls, known.generations) == (24, 1)
