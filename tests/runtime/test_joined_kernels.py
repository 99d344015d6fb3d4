"""C++ kernels of one lowering share libraries, and where they cannot they run all the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ditcache.runtime import joined_kernels
from ditcache.runtime.lower import piece_cache
from torch._inductor import config
from torch._inductor.codecache import CppPythonBindingsCodeCache

from .helpers import Denoiser, compiled, generate

pytestmark = pytest.mark.slow


@pytest.fixture
def libraries(tmp_path, monkeypatch):
    """The C++ files that Inductor compiles for kernels; none is known from before."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    piece_cache("inductor").pieces.clear()
    torch._dynamo.reset()
    CppPythonBindingsCodeCache.cache_clear()

    def found() -> list[Path]:
        return [p for p in tmp_path.rglob("*.main.cpp") if p.with_suffix(".so").exists()]

    with config.patch(fx_graph_cache=False, compile_threads=1):
        yield found
    piece_cache("inductor").pieces.clear()


def generated(model):
    return generate(compiled(model, policy="exact", inner="inductor"))


def kernels(files):
    return sum(f.read_text().count('extern "C"') for f in files)


def test_all_kernels_of_a_step_are_one_library(libraries):
    model = Denoiser()
    torch.testing.assert_close(generated(model), generate(model), rtol=1e-4, atol=1e-4)
    files = libraries()
    assert len(files) == 1
    assert kernels(files) > 1


def test_two_threads_build_two_libraries_a_piece(libraries):
    model = Denoiser()
    with config.patch(compile_threads=2):
        made = generated(model)
    torch.testing.assert_close(made, generate(model), rtol=1e-4, atol=1e-4)
    assert len(libraries()) > 1


def test_what_does_not_compile_together_compiles_alone(libraries, monkeypatch):
    monkeypatch.setattr(joined_kernels, "_TABLE", "no C++ {rows} {count}")
    model = Denoiser()
    torch.testing.assert_close(generated(model), generate(model), rtol=1e-4, atol=1e-4)
    files = libraries()
    assert len(files) == kernels(files) > 1


def test_a_kernel_with_macros_keeps_its_own_library(libraries, monkeypatch):
    monkeypatch.setattr(joined_kernels, "_joinable", lambda source: "exp(" not in source)
    model = Denoiser()
    torch.testing.assert_close(generated(model), generate(model), rtol=1e-4, atol=1e-4)
    assert len(libraries()) > 1


def test_others_kernels_are_left_alone(libraries):
    with joined_kernels.joined():
        pass
    x = torch.randn(8, 33)
    made = torch.compile(lambda x: torch.softmax(x.sin() + x, -1))
    torch.testing.assert_close(made(x), torch.softmax(x.sin() + x, -1))
    assert [kernels([f]) for f in libraries()] == [1]
