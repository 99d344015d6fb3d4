from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("filecheck")
sys.path.insert(0, str(Path(__file__).parent.parent / "ir"))
from pass_fixtures import lowered, planned, profile_of, seeded

__all__ = ["lowered", "planned", "profile_of", "seeded"]
