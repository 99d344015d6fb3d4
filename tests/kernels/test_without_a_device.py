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
    return sum(line.startswith("ok") for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("kernel", "cases"),
    [("forecast", 137), ("write", 54), ("sketch", 43), ("probe", 113), ("clock", 30)],
)
def test_in_the_interpreter_a_kernel_equals_its_reference(kernel, cases):
    assert run("interpreted.py", kernel, TRITON_INTERPRET="1") == cases


@pytest.mark.parametrize(("capability", "kernels"), [(80, 44), (90, 53)])
def test_the_kernels_compile(capability, kernels, tmp_path):
    """All types on sm_90; sm_80 has no fp8-e4m3."""
    assert run("compiled.py", str(capability), TRITON_CACHE_DIR=str(tmp_path)) == kernels
