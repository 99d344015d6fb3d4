from __future__ import annotations

import pytest
import torch


@pytest.fixture
def settings_of_a_fresh_process():
    """Training scripts set what holds for the whole process: afterwards it is as it was."""
    yield
    torch.set_flush_denormal(False)
    torch.backends.cuda.enable_flash_sdp(True)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)
