"""Votes: from the blind page's file to win rates."""

from __future__ import annotations

import json

import pytest
from ditcache.bench.report.blind import blind_page, pairs
from ditcache.bench.report.sources import find
from ditcache.bench.report.votes import wilson, win_rates
from ditcache.runtime import cli


def test_wilson_interval_against_known_values():
    low, high = wilson(0.5, 10)
    assert (low, high) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert wilson(0.0, 10)[0] == 0
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert wilson(0.5, 0) == (0.0, 1.0)


def test_wins_losses_and_ties_are_counted_for_both_sides():
    known = [{"id": "a", "methods": ["M0", "C3"]}, {"id": "b", "methods": ["C3", "M1"]}]
    votes = [
        {"id": "a", "choice": 1},
        {"id": "a", "choice": None},
        {"id": "b", "choice": 0},
        {"id": "unknown", "choice": 0},
    ]
    by_name = {rate.name: rate for rate in win_rates(votes, known)}
    assert (by_name["C3"].wins, by_name["C3"].losses, by_name["C3"].ties) == (2, 0, 1)
    assert by_name["C3"].rate == pytest.approx(2.5 / 3)
    assert by_name["M1"].rate == 0


def test_the_blind_page_does_not_name_methods(results):
    (source,) = find(results)
    text = blind_page(source)
    assert text is not None
    for name in ("M0", "C3", "title of"):
        assert name not in text.split("</style>")[1].replace("data:image/webp;base64", "")[:800]
    body = json.loads(text.split('<script type="application/json">')[1].split("</script>")[0])
    assert len(body["pairs"]) == 2
    assert all(set(pair) == {"id", "sample", "clips"} for pair in body["pairs"])
    assert all(clip["file"] in range(4) for pair in body["pairs"] for clip in pair["clips"])


def test_votes_become_win_rates_on_the_page(results, capsys):
    (source,) = find(results)
    cast = [{"id": pair["id"], "choice": pair["methods"].index("C3")} for pair in pairs(source)]
    cast.append({"id": "of another page", "choice": 0})
    path = results / "votes-1.txt"
    path.write_text(json.dumps({"what": "ditcache votes", "model": "tiny", "votes": cast}))
    assert cli.main(["report", str(results), "--votes", str(path)]) == 0
    rates = json.loads((results / "win-rates.json").read_text())["rates"]
    assert (rates[0]["name"], rates[0]["rate"], rates[0]["wins"]) == ("C3", 1.0, 2)
    assert "1 of 3 votes are on pairs that are not here" in capsys.readouterr().out
    assert "Blind votes" in (results / "report.html").read_text()


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"what": "x"}', '{"what": "ditcache votes", "votes": [{"id": 1}]}',
             '{"what": "ditcache votes", "votes": [{"id": 1, "choice": 5}]}']
)  # fmt: skip
def test_broken_votes_are_one_error(results, text, capsys):
    path = results / "votes.txt"
    path.write_text(text)
    assert cli.main(["report", str(results), "--votes", str(path)]) == 2
    assert "not votes" in capsys.readouterr().err
