"""`import ditcache` costs next to nothing; what is heavy comes when it is first used."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import ditcache
import pytest

HEAVY = ("torch._dynamo", "torch._inductor", "triton", "diffusers", "transformers", "scipy", "rich")


def loaded_after(code: str) -> list[str]:
    """Which of the heavy modules a fresh process has loaded after running the code."""
    code += f"\nimport sys\nprint(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import torch, ditcache",
        "import ditcache\nwith ditcache.generation([1.0, 0.5]), ditcache.branch('cond'): pass",
    ],
    ids=["import", "scopes"],
)
def test_the_import_loads_no_compiler(code: str):
    assert loaded_after(code) == []


def test_the_compiler_comes_with_what_needs_it():
    assert "torch._dynamo" in loaded_after("import ditcache\nditcache.apply")


def test_every_public_name_is_there():
    assert set(ditcache.__all__) <= set(dir(ditcache))
    for name in ditcache.__all__:
        assert getattr(ditcache, name).__module__.startswith("ditcache")


def test_every_package_is_installed():
    """They are listed one by one, since the repository's root is the package."""
    root = Path(ditcache.__file__).parent
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    parts = ("passes", "runtime", "kernels", "models", "bench")
    inits = [init for part in parts for init in (root / part).rglob("__init__.py")]
    folders = [".".join(("ditcache", *i.parent.relative_to(root).parts)) for i in inits]
    assert sorted(listed) == sorted(["ditcache", *folders])


def test_no_other_name_is():
    with pytest.raises(AttributeError, match="module 'ditcache' has no attribute 'compile'"):
        ditcache.compile  # noqa: B018
