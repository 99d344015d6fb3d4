"""The command lines of the benches: what cannot be used is one line, with status 2."""

from __future__ import annotations

import importlib

import pytest

from bench.arguments import Parser, file, folder, one_of

BAD = [
    ("ablate", ["--model", "no-such"], "invalid choice: 'no-such'"),
    ("ablate", ["--model", "dit-digits", "--speedup", "0.5"], "a factor of at least 1"),
    ("cold", ["--repeats", "0"], "a whole number of at least 1, got '0'"),
    ("coverage", ["Fluxx"], "no 'Fluxx'; expected among Flux, "),
    ("coverage", ["--out", "FILE"], "holds no rows of an earlier run"),
    ("coverage", ["--out", "FOLDER"], "expected a file, got the folder"),
    ("demo", ["--inner", "gcc"], "invalid choice: 'gcc'"),
    ("demo", ["--out", "FILE"], "expected a folder, but"),
    ("exact", ["--steps", "many"], "a whole number of at least 1, got 'many'"),
    ("exact", ["--out", "FILE/exact.json"], "expected a folder, but"),
    ("micro_results", [], "arguments are required: --out"),
    ("overhead", ["--batches", "1", "-3"], "got '-3'"),
    ("overhead", ["--no-such-option"], "unrecognized arguments: --no-such-option"),
    ("real_size", ["flux"], "no 'flux'; expected among flux-dev, "),
    ("real_size", ["--out", "FILE"], "holds no rows of an earlier run"),
    ("slot_formats", ["--speedups", "nan"], "a factor of at least 1"),
    ("video", [], "arguments are required: --model"),
    ("video", ["--model", "wan-emoji", "--clips", "2.5"], "got '2.5'"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), BAD)
def test_bad_input_is_one_line(name, arguments, said, tmp_path, capsys):
    (tmp_path / "FILE").write_text("[]")
    (tmp_path / "FOLDER").mkdir()
    arguments = [str(tmp_path / a) if (a.startswith("F") and a.isupper()) or "/" in a else a
                 for a in arguments]  # fmt: skip
    module = importlib.import_module(f"bench.{name}")
    with pytest.raises(SystemExit) as left:
        module.main(arguments)
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m bench.{name}: ")
    assert said in error
    assert error.count("\n") == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["FILE", "FOLDER"]


def test_places_need_not_exist_yet(tmp_path):
    assert file(str(tmp_path / "a" / "b.json")) == tmp_path / "a" / "b.json"
    assert folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"


def test_a_list_of_names_may_be_left_out():
    parser = Parser("bench.x", None)
    parser.add_argument("names", nargs="*", type=one_of(["a", "b"]))
    assert parser.parse_args([]).names == []
    assert parser.parse_args(["b", "a"]).names == ["b", "a"]
