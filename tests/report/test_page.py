"""The page, as a parser and a browser see it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from ditcache.bench.report.charts import Bar, Point, bars, scatter, strip
from ditcache.runtime import cli


class Checker(HTMLParser):
    """Collects tags and text; unclosed elements are left on the stack."""

    VOID = frozenset({"meta", "input", "br", "rect", "path", "circle"})

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
    assert cli.main(["report", str(results)]) == 0
    text = (results / "report.html").read_text()
    seen = Checker()
    seen.feed(text)
    assert seen.stack == []
    assert seen.links == []
    assert "url(http" not in text
    words = " ".join(seen.text)
    assert "needs <weights>" in words
    assert "3 of 3 black" in words
    assert "4 of 25 steps" in words
    assert "balanced" in words
    assert 'name="viewport"' in text


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_runs_the_viewer_and_the_page_is_no_wider_than_a_phone(results, tmp_path):
    cli.main(["report", str(results)])
    page = results / "report.html"
    probe = (
        "<script>const root = document.documentElement;"
        "document.title = 'frames ' + document.querySelectorAll('.frame').length"
        " + ' overflow ' + (root.scrollWidth - root.clientWidth);</script>"
    )
    page.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    done = subprocess.run(
        [
            "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--window-size=500,900",
            f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    assert "<title>frames 2 overflow 0</title>" in done.stdout
