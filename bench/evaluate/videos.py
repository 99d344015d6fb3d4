"""Generated videos as files, for judges that read files: one mp4 a sample."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..compare.frames import slug

FRAMES_A_SECOND = 8
"""As VBench's instructions for sampling write them; libx264 at its own quality, as there."""
REPEATABLE = {"x264-params": "mbtree=0"}
"""With its macroblock tree x264 gives other bits at another run, for equal frames."""


@dataclass(frozen=True)
class Videos:
    """The folder of one run's videos, `VARIANT/000123.mp4`."""

    folder: Path

    def path(self, variant: str, index: int) -> Path:
        return self.folder / slug(variant) / f"{index:06}.mp4"

    def there(self, variants: Iterable[str], indices: Sequence[int]) -> bool:
        """Whether all of them have been written."""
        return all(self.path(v, i).exists() for v in variants for i in indices)

    def write(self, variant: str, indices: Sequence[int], frames: Tensor) -> None:
        """Write samples [N, F, 3, H, W] in [0, 1], each at once or not at all."""
        for index, one in zip(indices, frames, strict=True):
            path = self.path(variant, index)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.{os.getpid()}.part")
            write_mp4(part, one)
            part.replace(path)


def write_mp4(path: Path, frames: Tensor) -> None:
    """Write frames [F, 3, H, W] in [0, 1], H and W even, as H.264; equal frames give equal bytes.

    Raises:
        ImportError: the package `av` is missing.

    """
    import av

    pixels = frames.mul(255).round().byte().permute(0, 2, 3, 1).contiguous().numpy()
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_A_SECOND, options=REPEATABLE)
        stream.height, stream.width = pixels.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # more of them change bits
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
