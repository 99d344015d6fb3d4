"""What all tests share: nothing is remembered on disk or in Dynamo from one test to the next."""

from __future__ import annotations

import logging

import pytest
import torch

# diffusers imports torchao where it is installed, which tells of GPU kernels that it cannot load.
logging.getLogger("torchao").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Plans that a test makes stay in its own folder, never in the user's."""
    monkeypatch.setenv("DITCACHE_CACHE_DIR", str(tmp_path / "ditcache"))


@pytest.fixture
def fresh_dynamo():
    """What Dynamo compiled before, or gave up, does not matter; nothing is left for the next."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
