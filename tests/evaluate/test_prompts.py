"""Prompt files, good and broken."""

from __future__ import annotations

import json

import pytest
from ditcache.bench.evaluate.prompts import PromptError, load_prompts


def test_lines_that_are_broken_are_left_out_and_said(tmp_path):
    path = tmp_path / "p.txt"
    path.write_bytes(b"a cat\n\n  a dog  \r\n\xff\xfe bad\nx\x00y\n\xc3\xa9t\xc3\xa9\n")
    prompts, skipped = load_prompts(path)
    assert prompts == ["a cat", "a dog", "\u00e9t\u00e9"]
    assert [s.name for s in skipped] == ["p.txt:2", "p.txt:4", "p.txt:5"]
    assert "UTF-8" in skipped[1].reason


def test_coco_gives_one_caption_an_image(tmp_path):
    path = tmp_path / "captions_val2014.json"
    entries = [
        {"image_id": 9, "id": 5, "caption": "A  late\n one. "},
        {"image_id": 2, "id": 8, "caption": "second of two"},
        {"image_id": 2, "id": 7, "caption": "first of two"},
        {"image_id": 3, "caption": "no id"},
        {"image_id": 4, "id": 1, "caption": "  "},
        "junk",
    ]
    path.write_text(json.dumps({"images": [], "annotations": entries}))
    prompts, skipped = load_prompts(path)
    assert prompts == ["first of two", "A late one."]
    assert len(skipped) == 3


def test_json_lists(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(["a", {"prompt": "b"}, 3, {"text": "c"}]))
    prompts, skipped = load_prompts(path)
    assert prompts == ["a", "b"]
    assert [s.name for s in skipped] == ["entry 2", "entry 3"]


def test_nothing_usable_is_one_error(tmp_path):
    with pytest.raises(PromptError, match="no such file"):
        load_prompts(tmp_path / "absent.txt")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(PromptError, match="not JSON"):
        load_prompts(tmp_path / "a.json")
    (tmp_path / "b.json").write_text('{"x": 1}')
    with pytest.raises(PromptError, match="expected a list"):
        load_prompts(tmp_path / "b.json")
    (tmp_path / "c.txt").write_text("\n\n")
    with pytest.raises(PromptError, match="no usable prompt"):
        load_prompts(tmp_path / "c.txt")
