from __future__ import annotations

import pytest
import torch
from ditcache.runtime import backend

pytest.importorskip("diffusers")


@pytest.fixture(autouse=True, scope="module")
def one_dynamo():
    """The tests of a file share what Dynamo has compiled, as pipelines in one process do."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(recompile_limit=64):
        yield
    torch._dynamo.reset()


@pytest.fixture(autouse=True)
def no_gradients():
    """Without gradients, and from the same random state."""
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.fixture
def nothing_before(monkeypatch):
    """Dynamo does not try again what it once could not trace; nothing was said yet."""
    torch._dynamo.reset()
    monkeypatch.setattr(backend, "_hooks", set())
