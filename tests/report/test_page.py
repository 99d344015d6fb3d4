"""The page, as a parser and a browser see it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from ditcache.bench.report.charts import Bar, Point, bars, scatter, strip
from ditcache.runtime import cli
from PIL import Image


class Checker(HTMLParser):
    """Collects tags and text; unclosed elements are left on the stack."""

    VOID = frozenset({"meta", "input", "br", "rect", "path", "circle", "img"})

    def __init__(self):
        super().__init__()
        self.stack, self.tags, self.text, self.links = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href") and v]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.stack.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_fetches_nothing(results, capsys):
    Image.new("RGB", (8, 8)).save(results / "frames.png")
    assert cli.main(["report", str(results)]) == 0
    text = (results / "report.html").read_text()
    seen = Checker()
    seen.feed(text)
    assert seen.stack == []
    assert [link.split(";")[0] for link in seen.links] == ["data:image/png"]
    assert "url(http" not in text
    words = " ".join(seen.text)
    assert "needs <weights>" in words
    assert "3 of 3 black" in words
    assert "masks only" in words
    assert "4 of 25 steps" in words
    assert "balanced" in words
    assert 'name="viewport"' in text
    assert "NVML: no driver" in words
    heads = [text for text in seen.text if text in ("frames/s", "GMACs", "reserved MiB", "W")]
    assert heads == ["frames/s", "GMACs"]  # no row has the others
    assert "C3+M1 3.00x" in re.sub(r"\s+", " ", words)
    assert "0.800" in words


def test_places_that_cannot_be_written_are_refused(results, tmp_path, capsys):
    assert cli.main(["report", str(results), "-o", str(results)]) == 2
    assert "a folder; expected the file" in capsys.readouterr().err
    assert cli.main(["report", str(results), "-o", str(results / "compare.json" / "x.html")]) == 2
    assert "nothing can be written" in capsys.readouterr().err
    assert not (results / "blind.html").exists()


def test_results_of_any_level_are_found_and_none_is_an_error(results, tmp_path, capsys):
    assert cli.main(["report", str(tmp_path.parent), "-o", str(tmp_path / "all.html")]) == 0
    assert "title of C3" in (tmp_path / "all.html").read_text()
    (tmp_path / "empty").mkdir()
    assert cli.main(["report", str(tmp_path / "empty")]) == 2
    assert "no results" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "absent")]) == 2


def test_scatter_puts_larger_values_right_and_up():
    points = [Point("a", 1, 1, 1, 1, 1, 1), Point("b", 4, 2, 3, 5, 2, 2)]
    found = re.findall(r'circle cx="([\d.]+)" cy="([\d.]+)"', scatter(points, "x", "y", log_x=True))
    (x_a, y_a), (x_b, y_b) = [(float(x), float(y)) for x, y in found]
    assert x_b > x_a
    assert y_b < y_a
    assert "No row" in scatter([], "x", "y")


def test_bars_and_strips_show_what_they_are_given():
    drawn = bars([Bar("a", 1.0, "one"), Bar("b", -2.0, "minus two")], "t")
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', drawn)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert strip([0, 3], 8).count('class="on"') == 2
    assert strip([0, 3], 8).count('class="off"') == 6


NEEDS_BROWSER = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def title_in_browser(page, probe, profile):
    """The title that a script leaves, put at the end of the page."""
    page.write_text(page.read_text().replace("</body>", f"<script>{probe}</script></body>"))
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900",
            f"--user-data-dir={profile}", "--virtual-time-budget=3000", "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    found = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found
    return html.unescape(found[1])


@pytest.mark.slow
@NEEDS_BROWSER
def test_a_browser_runs_the_viewer_and_the_page_is_no_wider_than_a_phone(results, tmp_path):
    cli.main(["report", str(results)])
    probe = """
        const root = document.documentElement, said = [];
        const press = (text) => [...document.querySelectorAll(".viewer button")]
            .find((b) => b.textContent.includes(text)).click();
        const look = () => said.push([...document.querySelectorAll(".viewer figcaption")]
            .map((c) => c.textContent).join(" and "));
        look(); press("flip"); look(); press("method ▶"); look();
        said.push("overflow " + (root.scrollWidth - root.clientWidth));
        document.title = said.join(", ");
    """
    found = title_in_browser(results / "report.html", probe, tmp_path / "profile")
    assert found == "M0 and C3, M0, C3, overflow 0"


@pytest.mark.slow
@NEEDS_BROWSER
def test_a_browsers_votes_by_keys_become_win_rates(results, tmp_path):
    cli.main(["report", str(results)])
    probe = """
        const key = (key) => document.dispatchEvent(new KeyboardEvent("keydown", { key }));
        key("ArrowLeft"); key("Backspace"); key("ArrowRight"); key(" "); key("ArrowLeft");
        const keep = (text) => { document.title = text; };
        URL.createObjectURL = (blob) => { blob.text().then(keep); return "#"; };
        [...document.querySelectorAll(".blind button")]
            .find((b) => b.textContent.includes("export")).click();
    """
    found = title_in_browser(results / "blind.html", probe, tmp_path / "profile")
    cast = json.loads(found)["votes"]
    assert sorted(str(vote["choice"]) for vote in cast) in (["0", "None"], ["1", "None"])
    (results / "votes.txt").write_text(found)
    assert cli.main(["report", str(results), "--votes", str(results / "votes.txt")]) == 0
    rates = json.loads((results / "win-rates.json").read_text())["rates"]
    assert [(r["wins"], r["losses"], r["ties"]) for r in rates] == [(1, 0, 1), (0, 1, 1)]
