"""A model that takes the shortcut past Dynamo's guards, and how often it did."""

from __future__ import annotations

import ditcache
from torch import nn

from .helpers import Denoiser, generate, planned

SKIPPED = 7  # of the plan's 12 steps


def shortcuts(model: nn.Module) -> int:
    return ditcache.summary(model).shortcuts


def running(**options):
    """A model in whose second generation every skipped step takes the shortcut."""
    model = Denoiser()
    made, plan = planned(model, **options)
    generate(made)
    assert shortcuts(made) == SKIPPED - 1  # the first one compiles its variant
    return model, made, plan
