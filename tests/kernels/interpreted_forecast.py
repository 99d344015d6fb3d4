"""Run by test_forecast.py in a process with TRITON_INTERPRET=1: all cases, one line for each."""

from __future__ import annotations

import math

import torch
from ditcache.kernels.forecast import BLOCK, forecast_kernel, forecast_reference

SHAPES = [(1,), (7,), (3, 5, 11), (BLOCK,), (BLOCK + 1,), (2, BLOCK - 1), (1, 1, 1, 33)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def main() -> None:
    torch.manual_seed(0)
    kernel = forecast_kernel()
    for shape in SHAPES:
        for dtype in DTYPES:
            for k in (1, 2, 3, 4):
                slot = torch.randn(k, *shape).to(dtype)
                weights = torch.randn(k)
                out = torch.full(shape, torch.nan, dtype=dtype)
                beyond = torch.full((64,), 7.0, dtype=dtype)  # what lies after `out` stays
                whole = torch.cat([out.reshape(-1), beyond])
                n = out.numel()
                kernel[(max(1, math.ceil(n / BLOCK)),)](slot, weights, whole, n, K=k, BLOCK=BLOCK)
                expected = forecast_reference(slot, weights)
                tolerance = {"rtol": 1e-5, "atol": 1e-5}
                if dtype != torch.float32:
                    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-3}
                torch.testing.assert_close(whole[:n].view(shape), expected, **tolerance)
                assert torch.equal(whole[n:], beyond)
                print("ok", shape, dtype, k)


if __name__ == "__main__":
    main()
