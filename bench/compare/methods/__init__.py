"""The methods by name. One file each; `base` has the contract."""

from __future__ import annotations

from .base import Method, MethodError, Refused, Setup
from .baseline import Baseline
from .caching import Caching
from .compiled import Compiled
from .distilled import Distilled
from .fewer_steps import FewerSteps
from .int8 import Int8Weights
from .keyframes import Keyframes
from .lcm import LatentConsistency
from .sparse import SemiStructuredSparse

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Baseline(),
        Int8Weights(),
        Compiled(),
        FewerSteps(15),
        FewerSteps(10),
        FewerSteps(4),
        Distilled(),
        SemiStructuredSparse(),
        Keyframes(),
        LatentConsistency(),
        Caching("exact"),
        Caching("C2", 2.0),
        Caching("C3", 3.0),
        Caching("C5", 5.0),
        Baseline("M0-again", "baseline, measured again"),
    )
}
BASELINE = "M0"

__all__ = ["BASELINE", "METHODS", "Method", "MethodError", "Refused", "Setup"]
