"""What all tests share: nothing is remembered on disk or in Dynamo from one test to the next."""

from __future__ import annotations

import logging

import pytest

# diffusers imports torchao where it is installed, which tells of GPU kernels that it cannot load.
logging.getLogger("torchao").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def private_cache(tmp_path, monkeypatch):
    """Plans that a test makes stay in its own folder, never in the user's."""
    monkeypatch.setenv("DITCACHE_CACHE_DIR", str(tmp_path / "ditcache"))


def pytest_collection_modifyitems(items):
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))
