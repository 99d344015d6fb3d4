"""The metrics against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from bench import metrics
from bench.digit_judge import real_accuracy, right_class
from bench.quality import Pictures, distribution, fidelity
from bench.reference import RealSet, real_emoji


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_is_minus_ten_log_of_the_squared_error():
    reference = torch.full((3, 3, 16, 16), 0.5)
    pictures = reference + torch.tensor([0.1, 0.01, 0.0]).reshape(3, 1, 1, 1)
    np.testing.assert_allclose(
        metrics.psnr(pictures, reference), [20.0, 40.0, metrics.PSNR_CAP], atol=1e-4
    )
    with pytest.raises(ValueError, match="reference"):
        metrics.psnr(pictures, reference[:2])


@pytest.mark.parametrize("side", [8, 64])
def test_ssim_is_one_for_equal_pictures_and_less_for_noise(side):
    reference = noise(2, 3, side, side).mul(0.2).add(0.5).clamp(0, 1)
    np.testing.assert_allclose(metrics.ssim(reference, reference), 1.0, atol=1e-9)
    worse = metrics.ssim((reference + 0.1 * noise(2, 3, side, side, seed=1)).clamp(0, 1), reference)
    assert worse.shape == (2,)
    assert (worse < 0.99).all()


def exact_gaussian(samples, mean, covariance, seed):
    """Samples whose mean and covariance are exactly these."""
    x = noise(samples, len(mean), seed=seed)
    x = x - x.mean(0)
    whitened = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / (samples - 1))).T
    return whitened @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_with_commuting_covariances():
    a, b = torch.tensor([4.0, 1.0, 0.25]), torch.tensor([1.0, 9.0, 0.25])
    shift = torch.tensor([1.0, -2.0, 0.5])
    first = exact_gaussian(50, torch.zeros(3).double(), torch.diag(a).double(), 0)
    second = exact_gaussian(70, shift.double(), torch.diag(b).double(), 1)
    expected = float(shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum())
    assert metrics.frechet_distance(first, second) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_is_the_matrix_root_formula():
    x, y = noise(200, 6) @ noise(6, 6, seed=1), noise(150, 6, seed=2) + 0.3
    c1, c2 = np.cov(x.numpy(), rowvar=False), np.cov(y.numpy(), rowvar=False)
    root = np.real(sqrtm(c1 @ c2))
    expected = float((x.mean(0) - y.mean(0)).square().sum()) + np.trace(c1 + c2 - 2 * root)
    assert metrics.frechet_distance(x, y) == pytest.approx(expected, rel=1e-8)
    assert metrics.frechet_distance(y, x) == pytest.approx(expected, rel=1e-8)


def test_frechet_distance_holds_with_fewer_samples_than_dimensions():
    x = noise(8, 100)
    assert metrics.frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert metrics.frechet_distance(x, x + 2.0) == pytest.approx(400.0, rel=1e-9)
    with pytest.raises(ValueError, match="two samples"):
        metrics.frechet_distance(x[:1], x)


def test_spread_covers_the_mean_and_is_the_same_every_time():
    values = np.random.default_rng(0).normal(40.0, 2.0, 128)
    found = metrics.spread(values)
    assert found == metrics.spread(values)
    assert found.worst == values.min()
    assert found.worst < found.p5 < found.median < values.max()
    assert found.low < values.mean() < found.high
    # The interval of a mean is about two standard errors to each side.
    assert found.high - found.low == pytest.approx(4 * values.std() / 128**0.5, rel=0.15)


def test_captions_are_told_by_their_picture():
    real = noise(5, 12).abs()
    wanted = torch.tensor([3, 1])
    made = real[wanted] + 0.01 * noise(2, 12, seed=3)
    centre = real.mean(0)
    assert (metrics.caption_similarity(made, real[wanted], centre) > 0.99).all()
    assert metrics.retrieval(made, real, wanted, centre).tolist() == [1.0, 1.0]
    assert metrics.retrieval(made, real, wanted.flip(0), centre).tolist() == [0.0, 0.0]


def test_quality_says_what_was_compared():
    made = Pictures(noise(4, 3, 16, 16).sigmoid(), noise(4, 12).abs())
    real = RealSet("made up", noise(9, 12, seed=1).abs(), {"a": 0, "b": 5})
    same = fidelity(made, made)
    assert same["bit_identical"]
    assert same["psnr"]["mean"] == metrics.PSNR_CAP
    found = distribution(made, real, {"uncached": made}, ["a", "b", "a", "b"], space="X")
    assert found["FD-X:uncached"] == 0.0
    assert found["samples"] == {"made": 4, "real": 9, "uncached": 4}
    assert not any("FID" in name for name in found)


def test_every_demo_prompt_has_its_real_picture():
    from ditcache.models.tiny import flux_emoji_prompts

    real = real_emoji()
    assert len(real.rows(list(flux_emoji_prompts().captions))) == len(flux_emoji_prompts())
    assert torch.isfinite(real.features).all()


def test_digit_judge_knows_real_digits():
    from ditcache.models.data import digits

    images, labels = digits()
    pictures = ((images[:50] + 1) / 2).expand(-1, 3, -1, -1)
    assert right_class(pictures, labels[:50].tolist()).mean() > 0.95
    assert real_accuracy() > 0.95
