"""Small models of every architecture that ditcache is tested on, and their own pipelines.

One description each; the tests in `tests/architectures` and the table of `bench.coverage` are made
from the same ones.
"""

from __future__ import annotations

from .base import Architecture, Request, Sampler
from .flux import ARCHITECTURES as _FLUX
from .images import ARCHITECTURES as _IMAGES
from .next_dit import ARCHITECTURES as _NEXT_DIT
from .unets import ARCHITECTURES as _UNETS
from .videos import ARCHITECTURES as _VIDEOS
from .wan import ARCHITECTURES as _WAN

_ALL = (*_FLUX, *_IMAGES, *_NEXT_DIT, *_WAN, *_VIDEOS, *_UNETS)
ARCHITECTURES: dict[str, Architecture] = {a.name: a for a in _ALL}

__all__ = ["ARCHITECTURES", "Architecture", "Request", "Sampler"]
