"""Other people's caching libraries, unmodified, each behind the same few lines of glue."""

from __future__ import annotations

from .base import Peer
from .cache_dit import DBCache, DBCacheTaylorSeer
from .deep_cache import DeepCacheHelper
from .diffusers_hooks import (
    FasterCache,
    FirstBlockCache,
    PyramidAttentionBroadcast,
    TaylorSeer,
)
from .mag_cache import MagCache
from .sea_cache import SeaCache

PEERS: dict[str, type[Peer]] = {
    "diffusers-fbcache": FirstBlockCache,
    "diffusers-taylorseer": TaylorSeer,
    "diffusers-magcache": MagCache,
    "diffusers-seacache": SeaCache,
    "diffusers-pab": PyramidAttentionBroadcast,
    "diffusers-fastercache": FasterCache,
    "cache-dit-dbcache": DBCache,
    "cache-dit-taylorseer": DBCacheTaylorSeer,
    "deepcache-helper": DeepCacheHelper,
}
