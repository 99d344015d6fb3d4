"""Small models of every architecture that ditcache is tested on, and their own pipelines.

One description each; the tests in `tests/architectures` and the table of `bench.coverage` are made
from the same ones.
"""

from __future__ import annotations

from .base import Architecture, Request, Sampler
from .images import ARCHITECTURES as _IMAGES
from .unets import ARCHITECTURES as _UNETS
from .videos import ARCHITECTURES as _VIDEOS

ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in (*_IMAGES, *_VIDEOS, *_UNETS)}

__all__ = ["ARCHITECTURES", "Architecture", "Request", "Sampler"]
