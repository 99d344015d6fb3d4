"""Streaming statistics against whole-set formulas."""

from __future__ import annotations

import pytest
import torch
from ditcache.bench import metrics
from ditcache.bench.evaluate.moments import Moments, frechet_distance


def rows(count, width=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=draw) @ torch.randn(width, width, generator=draw) + 3


def test_mean_and_covariance_are_those_of_the_whole_set():
    x = rows(57)
    found = Moments.of_blocks(x.split(8))
    torch.testing.assert_close(found.mean, x.double().mean(0))
    torch.testing.assert_close(found.covariance, torch.cov(x.double().T))


def test_merging_shards_in_order_is_exact():
    x = rows(64)
    blocks = x.split(8)
    whole = Moments.of_blocks(blocks)
    shards = [Moments.empty(x[0]) for _ in range(2)]
    for shard, part in zip(shards, (blocks[:4], blocks[4:]), strict=True):
        for block in part:
            shard.add(block)
    merged = shards[0].merge(shards[1])
    assert merged.count == whole.count
    torch.testing.assert_close(merged.outer, whole.outer, rtol=1e-14, atol=1e-10)
    again = Moments.of_blocks(blocks)
    assert torch.equal(again.outer, whole.outer)
    assert torch.equal(again.total, whole.total)
    with pytest.raises(ValueError, match="same origin"):
        whole.merge(Moments.of_blocks(rows(8, seed=1).split(8)))


@pytest.mark.parametrize("count", [9, 200])
def test_frechet_distance_is_that_of_the_whole_sets(count):
    x, y = rows(count), rows(count, seed=1)
    found = frechet_distance(Moments.of_blocks(x.split(7)), Moments.of_blocks(y.split(5)))
    assert found == pytest.approx(metrics.frechet_distance(x, y), rel=1e-6)
    same = frechet_distance(Moments.of_blocks(x.split(7)), Moments.of_blocks(x.split(7)))
    assert same == pytest.approx(0, abs=1e-6)


def test_too_few_samples_are_said():
    with pytest.raises(ValueError, match="no samples"):
        Moments.of_blocks([])
    with pytest.raises(ValueError, match="two samples"):
        _ = Moments.of_blocks([rows(1)]).covariance
