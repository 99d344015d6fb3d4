"""`sdpa_kernel` inside a model: each attention keeps the kernel that it was written under."""

from __future__ import annotations

import torch
import toy_models as models
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

FLASH, MATH = SDPBackend.FLASH_ATTENTION, SDPBackend.MATH


class Kernels(nn.Module):
    """Attention under nested ranges, after them, and in a range of its own that is hoisted."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(models.D, models.D), nn.Linear(models.D, models.D)

    def forward(self, x, timestep, text):
        q = self.inward(x)[:, None] * timestep[:, None, None, None]
        k = text[:, None]
        with sdpa_kernel(MATH):
            a = F.scaled_dot_product_attention(q, k, k)
            with sdpa_kernel([FLASH, MATH], set_priority=True):
                b = F.scaled_dot_product_attention(a, k, k)
            c = F.scaled_dot_product_attention(b, k, k)
        d = F.scaled_dot_product_attention(c, k, k)
        with sdpa_kernel(MATH):
            own = F.scaled_dot_product_attention(k, k, k)
        return x + self.outward((d + own.mean(2, keepdim=True))[:, 0])


class Seen(TorchDispatchMode):
    """The attention ops that run, in order; a matrix product stands for the math kernel's."""

    def __init__(self) -> None:
        super().__init__()
        self.names = []

    @classmethod
    def ignore_compile_internals(cls):
        return True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if "attention" in name or name == "bmm":
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def arguments(seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    x, text = torch.randn(1, 4, models.D, generator=g), torch.randn(1, 5, models.D, generator=g)
    return x, torch.ones(1), text


def test_a_range_becomes_an_argument_of_the_attention_inside(filecheck, lowered):
    filecheck(
        lowered(Kernels(), arguments(), "normalize"),
        """
        CHECK-NOT: _sdpa_kernel
        CHECK:     %a = scaled_dot_product_attention({{.*}}, backends=(MATH,), set_priority=False)
        CHECK:     %b = {{.*}}, backends=(FLASH_ATTENTION, MATH), set_priority=True)
        CHECK:     %c = {{.*}}, backends=(MATH,), set_priority=False)
        CHECK:     %d = scaled_dot_product_attention(%c, %k, %k) :
        CHECK:     %own = {{.*}}, backends=(MATH,), set_priority=False)
        CHECK-NOT: _backend_from_string
        """,
    )


def test_the_same_kernels_run_and_what_is_invariant_is_hoisted():
    torch._dynamo.reset()
    model = Kernels().eval()
    options = {"inner": "eager", "policy": "exact", "remember": False}
    made = torch.compile(model, backend="ditcache", options=options)
    before = torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True)
    x, t, text = arguments()
    with torch.no_grad():
        with Seen() as plain:
            expected = model(x, t, text)
        with Seen() as first:
            torch.testing.assert_close(made(x, t, text), expected, rtol=0, atol=0)
        x, t = x * 0.9, t * 0.9
        with Seen() as second:
            ours = made(x, t, text)
        torch.testing.assert_close(ours, model(x, t, text), rtol=0, atol=0)
    assert plain.names.count("bmm") == 6, "three of five are asked to be plain products"
    assert sorted(first.names) == sorted(plain.names)
    assert second.names == plain.names[:-2], "the text's own attention is remembered"
    assert torch.nn.attention._cur_sdpa_kernel_backends(with_priority=True) == before
    torch._dynamo.reset()
