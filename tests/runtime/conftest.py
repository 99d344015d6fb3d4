from __future__ import annotations

import pytest
import torch
from ditcache.runtime import captured


@pytest.fixture(autouse=True)
def compiled_anew(fresh_dynamo):
    """Each test compiles anew, without gradients, from the same random state."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def cpu_captures(monkeypatch):
    """Work on the CPU is captured, too."""
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
