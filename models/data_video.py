"""The video data of the small models: Fluent animated emoji, short loops with a Unicode name."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

PACKAGES = tuple(f"@lobehub/fluent-emoji-anim-{part}" for part in range(1, 5))
VERSION = "1.0.0"
SIZE = 64
PHASES = 18
FRAMES = 9

_SINGLE_CODEPOINT = re.compile(r"([0-9a-f]+)(-fe0f)?\.webp")


@dataclass(frozen=True)
class VideoSet:
    """Captioned loops, the most animated first.

    Attributes:
        phases: uint8 [N, 18, 3, size, size], RGB on white, at equal distances over one loop.
        captions: N lower-cased Unicode names, e.g. "roller coaster".
        codepoints: N Unicode code points.

    """

    phases: torch.Tensor
    captions: tuple[str, ...]
    codepoints: tuple[int, ...]

    @property
    def clips(self) -> torch.Tensor:
        """The nine frames of each clip, uint8 [N, 9, 3, size, size]: every second phase."""
        return self.phases[:, ::2]

    def __len__(self) -> int:
        return len(self.captions)


def animated_emoji(
    cache: str | Path | None = None, *, count: int | None = None, size: int = SIZE
) -> VideoSet:
    """Fetch (once) and decode the animated emoji that have a name of one code point.

    Of 3,391 webp files, 534 are animated and named. They come sorted by the mean absolute
    difference of neighbouring frames, largest first, so that `count` takes those that move most.

    Args:
        cache: folder for the 730 MB of packages and for the decoded frames; the user's cache
            folder, if not given. The packages may be deleted once the frames are there.
        count: how many clips to take; all, if not given.
        size: side of the frames in pixels; a divisor of 64.

    Raises:
        FileNotFoundError: the packages are neither in the cache nor can npm fetch them.
        ValueError: `size` does not divide 64, or `count` exceeds the number of clips.

    """
    from safetensors.torch import load_file, save_file

    if size < 1 or SIZE % size:
        raise ValueError(f"size has to divide {SIZE}, the side of the kept frames; got {size}")
    folder = Path(cache) if cache is not None else _default_cache()
    decoded = folder / f"fluent-emoji-{PHASES}x{SIZE}.safetensors"
    names = decoded.with_suffix(".json")
    if not (decoded.is_file() and names.is_file()):
        codepoints, phases = _sorted_by_motion(dict(_decode_all(_fetch(folder), SIZE)))
        names.write_text(json.dumps(codepoints))
        partial = decoded.with_suffix(".partial")
        save_file({"phases": phases}, partial)
        os.replace(partial, decoded)
    codepoints: list[int] = json.loads(names.read_text())
    phases = load_file(decoded)["phases"]
    if count is not None and not 0 < count <= len(codepoints):
        raise ValueError(
            f"count has to be 1 to {len(codepoints)}, the clips there are; got {count}"
        )
    chosen = codepoints[:count]
    captions = tuple(unicodedata.name(chr(codepoint)).lower() for codepoint in chosen)
    phases = phases[:count]
    if size < SIZE:
        smaller = F.avg_pool2d(phases.flatten(0, 1).float(), SIZE // size).round().byte()
        phases = smaller.unflatten(0, (-1, PHASES))
    return VideoSet(phases, captions, tuple(chosen))


def _default_cache() -> Path:
    from platformdirs import user_cache_path

    return user_cache_path("ditcache") / "fluent-emoji"


def _fetch(folder: Path) -> list[Path]:
    """Return the four package archives, fetched by npm if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    archives: list[Path] = []
    for package in PACKAGES:
        archive = folder / f"{package.removeprefix('@').replace('/', '-')}-{VERSION}.tgz"
        archives.append(archive)
        if archive.is_file():
            continue
        npm = shutil.which("npm")
        if npm is None:
            raise FileNotFoundError(
                f"no {archive}: install npm, which fetches it (about 180 MB), or run "
                f"`npm pack {package}@{VERSION}` elsewhere and put the file there"
            )
        command = [npm, "pack", f"{package}@{VERSION}", "--silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or not archive.is_file():
            raise FileNotFoundError(f"npm could not fetch {package}@{VERSION}: {done.stderr}")
    return archives


def _decode_all(archives: list[Path], size: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Yield (code point, uint8 [18, 3, size, size]) of each animated, named picture."""
    for path in archives:
        with tarfile.open(path) as archive:
            for member in archive:
                match = _SINGLE_CODEPOINT.fullmatch(Path(member.name).name)
                content = archive.extractfile(member) if match else None
                if match is None or content is None:
                    continue
                codepoint = int(match[1], 16)
                if unicodedata.name(chr(codepoint), ""):
                    phases = _decode(content.read(), size)
                    if phases is not None:
                        yield codepoint, phases


def _decode(webp: bytes, size: int) -> torch.Tensor | None:
    """Webp bytes -> uint8 [18, 3, size, size], or None for a still picture."""
    from PIL import Image

    picture = Image.open(io.BytesIO(webp))
    total: int = getattr(picture, "n_frames", 1)
    if total < 2:
        return None
    phases: list[torch.Tensor] = []
    for phase in range(PHASES):
        picture.seek(round(phase * total / PHASES))
        frame = picture.convert("RGBA")
        white = Image.new("RGBA", frame.size, "white")
        white.alpha_composite(frame)
        small = white.convert("RGB").resize((size, size), Image.Resampling.BOX)
        pixels = torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        phases.append(pixels.reshape(size, size, 3).permute(2, 0, 1))
    return torch.stack(phases)


def _sorted_by_motion(clips: dict[int, torch.Tensor]) -> tuple[list[int], torch.Tensor]:
    def motion(codepoint: int) -> float:
        return float(clips[codepoint][::2].float().diff(dim=0).abs().mean())

    order = sorted(clips, key=motion, reverse=True)
    return order, torch.stack([clips[codepoint] for codepoint in order])
