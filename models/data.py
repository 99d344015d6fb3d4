"""The two real data sets of the small models: Noto Color Emoji bitmaps and scikit-learn digits."""

from __future__ import annotations

import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import torch

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")

# Glyphs that are parts of other glyphs, or whose picture says nothing about their name: letters of
# flags, bare keycap digits, skin tones and hair styles.
_UNINFORMATIVE = ("regional indicator", "emoji modifier", "emoji component", "digit ")
_UNINFORMATIVE_NAMES = frozenset({"number sign", "asterisk"})


@dataclass(frozen=True)
class EmojiSet:
    """Captioned pictures.

    Attributes:
        images: uint8 [N, 3, size, size], RGB on white.
        captions: N lower-cased Unicode names, e.g. "grinning face".
        codepoints: N Unicode code points, ascending.

    """

    images: torch.Tensor
    captions: tuple[str, ...]
    codepoints: tuple[int, ...]


def emoji(font: str | Path | None = None, *, size: int = 64) -> EmojiSet:
    """Read the colour bitmaps of Noto Color Emoji and name them by their Unicode character.

    Only glyphs of one code point are taken (about 1,350): their name is the caption. Flag letters,
    bare digits, skin tones and hair components are left out, and so is a picture that occurs twice.
    The set depends a little on Python's Unicode tables and on the font's version.

    Args:
        font: the font file; the place where Debian installs it, if not given.
        size: side of the square pictures in pixels.

    Raises:
        FileNotFoundError: the font is not there (names the package that has it).
        ValueError: the font has no CBDT bitmaps (e.g. its COLR vector edition).
        ImportError: fontTools or Pillow is missing.

    """
    path = Path(font) if font is not None else FONT
    if not path.is_file():
        raise FileNotFoundError(
            f"no emoji font at {path}: install the Debian package fonts-noto-color-emoji, "
            "or give the path of a NotoColorEmoji.ttf with CBDT bitmaps (--font)"
        )
    try:
        from fontTools.ttLib import TTFont
    except ImportError as error:
        raise ImportError("reading the emoji font needs fontTools: ditcache[train]") from error

    ttf = TTFont(path, lazy=True)
    if "CBDT" not in ttf:
        raise ValueError(f"{path} has no CBDT bitmap table; take the bitmap edition of the font")
    strike = ttf["CBDT"].strikeData[0]
    images: list[torch.Tensor] = []
    captions: list[str] = []
    codepoints: list[int] = []
    seen: set[bytes] = set()
    for codepoint, glyph in sorted((ttf.getBestCmap() or {}).items()):
        caption = unicodedata.name(chr(codepoint), "").lower()
        if glyph not in strike or not caption or _is_uninformative(caption):
            continue
        png = bytes(strike[glyph].imageData)
        if png in seen:
            continue
        seen.add(png)
        images.append(_decode(png, size))
        captions.append(caption)
        codepoints.append(codepoint)
    return EmojiSet(torch.stack(images), tuple(captions), tuple(codepoints))


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """Load scikit-learn's handwritten digits.

    Returns:
        images: float32 [1797, 1, 8, 8] in [-1, 1].
        labels: int64 [1797] in 0..9.

    Raises:
        ImportError: scikit-learn is missing.

    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: ditcache[demo]") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.as_tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1
    return images, torch.as_tensor(labels, dtype=torch.int64)


def _is_uninformative(caption: str) -> bool:
    return caption.startswith(_UNINFORMATIVE) or caption in _UNINFORMATIVE_NAMES


def _decode(png: bytes, size: int) -> torch.Tensor:
    """PNG bytes -> uint8 [3, size, size]: on white, padded to a centred square, antialiased."""
    from PIL import Image

    glyph = Image.open(io.BytesIO(png)).convert("RGBA")
    side = max(glyph.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2))
    small = square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    return (
        torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8)
        .reshape(size, size, 3)
        .permute(2, 0, 1)
        .contiguous()
    )
