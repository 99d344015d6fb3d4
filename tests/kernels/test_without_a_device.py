"""Every kernel in Triton's interpreter against its reference, and compiled for devices not here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


def run(script, *arguments, **environment):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(script)), *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in done.stdout.splitlines() if line.startswith("ok")]


@pytest.mark.parametrize(
    ("kernel", "cases"),
    [("forecast", 137), ("write", 48), ("sketch", 43), ("probe", 113), ("clock", 30)],
)
def test_in_the_interpreter_a_kernel_equals_its_reference(kernel, cases):
    assert len(run("interpreted.py", kernel, TRITON_INTERPRET="1")) == cases


def test_what_the_runtime_does_reaches_its_kernels(tmp_path):
    """From recorder, plan, storage format, decision and guard; results are those of references."""
    assert run("wired.py", TRITON_INTERPRET="1", DITCACHE_CACHE_DIR=str(tmp_path)) == [
        "ok recorder write",
        "ok plan distance forecast verdict",
        "ok packed distance forecast verdict write",
        "ok decided distance forecast verdict",
        "ok guarded clock distance forecast verdict",
    ]


@pytest.mark.parametrize(("capability", "kernels"), [(80, 44), (90, 53)])
def test_the_kernels_compile(capability, kernels, tmp_path):
    """All types on sm_90; sm_80 has no fp8-e4m3."""
    assert len(run("compiled.py", str(capability), TRITON_CACHE_DIR=str(tmp_path))) == kernels
