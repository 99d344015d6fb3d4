"""Sketches: linear, exact where they fit, with inner products that are right on average."""

from __future__ import annotations

import numpy as np
import torch
from ditcache.runtime.sketch import sketch
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 3000), width=st.sampled_from([0, 16, 64, 512]), seed=st.integers(0, 9))
def test_property_a_sketch_is_linear(size, width, seed):
    g = torch.Generator().manual_seed(seed)
    a, b = torch.randn(size, generator=g), torch.randn(size, generator=g)
    both = sketch(2 * a - b, width)
    torch.testing.assert_close(both, 2 * sketch(a, width) - sketch(b, width), rtol=1e-4, atol=1e-4)


def test_a_sketch_is_exact_where_it_fits_and_short_where_not():
    a = torch.randn(3, 5)
    assert sketch(a, 0).shape == sketch(a, 16).shape == (15,)
    assert sketch(torch.randn(1000), 64).shape == (64,)
    assert sketch(torch.randn(100).bfloat16(), 64).dtype == torch.float32


def test_sketched_inner_products_are_unbiased():
    """Mean over many pairs within four standard errors; the spread as theory says."""
    width, size, pairs = 64, 1024, 600
    g = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(pairs):
        a = torch.randn(size, generator=g)
        b = 0.5 * a + torch.randn(size, generator=g)
        a, b = a / a.norm(), b / b.norm()
        errors.append(float(sketch(a, width) @ sketch(b, width) - a @ b))
    spread = float(np.std(errors))
    assert abs(np.mean(errors)) < 4 * spread / pairs**0.5
    assert spread < 1.5 * (2 / width) ** 0.5
