from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("filecheck")
sys.path.insert(0, str(Path(__file__).parent))
from pass_fixtures import filecheck, lowered, planned, profile_of, seeded

__all__ = ["filecheck", "lowered", "planned", "profile_of", "seeded"]
