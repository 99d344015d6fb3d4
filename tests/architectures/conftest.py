"""Descriptions of the architectures are shared with the benches, from the repository's root."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = str(Path(__file__).resolve().parents[2])
# At the end, so that the root's other folders hide no installed package.
if ROOT not in sys.path:
    sys.path.append(ROOT)

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
