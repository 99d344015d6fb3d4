"""The feature network: right weights, right preprocessing, and what torchmetrics makes of it."""

from __future__ import annotations

import pytest
import torch

from bench.features import WIDTH, extractor, features
from bench.metrics import frechet_distance

DAISY = 985


def test_a_daisy_is_a_daisy():
    from sklearn.datasets import load_sample_image

    picture = torch.tensor(load_sample_image("flower.jpg")).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        assert int(extractor().classify(picture).argmax()) == DAISY


def test_features_do_not_depend_on_the_batch():
    pictures = torch.rand(5, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = features(pictures)
    assert found.shape == (5, WIDTH)
    assert found.dtype == torch.float64
    torch.testing.assert_close(features(pictures, batch=2), found, rtol=1e-4, atol=1e-5)
    assert features(pictures[:0]).shape == (0, WIDTH)


def test_distance_agrees_with_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    generator = torch.Generator().manual_seed(0)

    class Small(torch.nn.Module):
        num_features = 8

        def forward(self, images):
            return torch.nn.functional.adaptive_avg_pool2d(images[:, :2].double(), 2).flatten(1)

    metric = FrechetInceptionDistance(feature=Small(), normalize=True, input_img_size=(3, 8, 8))
    metric.set_dtype(torch.float64)
    sets = [torch.rand(64, 3, 8, 8, generator=generator) ** p for p in (1, 2)]
    metric.update(sets[0], real=True)
    metric.update(sets[1], real=False)
    own = [Small()(x) for x in sets]
    assert frechet_distance(*own) == pytest.approx(float(metric.compute()), rel=1e-4)
