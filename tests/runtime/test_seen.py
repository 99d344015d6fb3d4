"""What the clock keeps of a call: values, latents and timesteps, and when two are the same."""

from __future__ import annotations

import pytest
import torch
from ditcache.runtime.seen import Latents, Seen, read_timestep

from .helpers import latents


def test_seen_tells_views_of_one_storage_apart():
    square = torch.arange(9.0).reshape(3, 3)
    assert not Seen(square).same(square.t())
    assert Seen(square).same(square.view(3, 3))
    assert not Seen(1).same(1.0)
    assert Seen("a").same("a")
    with torch.inference_mode():
        value = torch.zeros(4)
        seen = Seen(value)
        assert seen.same(value)
        value.add_(1)
        assert not seen.same(value)


def test_without_reading_only_numbers_and_places_in_memory_tell_that_nothing_changed():
    value = torch.zeros(4)
    seen = Seen(value)
    assert seen.surely(value)
    assert seen.surely(value.view(4))
    assert not seen.surely(value.clone()), "equal entries would have to be read"
    value.add_(1)
    assert not seen.surely(value)
    assert Seen(300.5).surely(300.0 + 0.5)
    assert not Seen(1).surely(1.0)
    assert not Seen(1.0).surely(torch.ones(()))


def test_latents_of_other_noise_are_unrelated():
    for seed in range(50):
        here = Latents(latents(seed, 0.5))
        assert here.leads_to(Latents(latents(seed, 0.7)))
        assert not here.leads_to(Latents(latents(seed + 1000, 0.5)))


@pytest.mark.parametrize(
    ("value", "read"),
    [
        (0.5, 0.5),
        (7, 7.0),
        (torch.tensor(3), 3.0),
        (torch.tensor([0.25]), 0.25),
        (torch.full((4,), 2.0, dtype=torch.bfloat16), 2.0),
        (torch.tensor([1.0, 2.0]), None),
        (torch.tensor([[1.0], [2.0]]), None),
        (torch.tensor([[0.0, 5.0]]), 5.0),
        (torch.tensor([[0.0, 5.0], [0.0, 5.0]]), 5.0),
        (torch.empty(0), None),
        ("soon", None),
        (torch.tensor([1j]), None),
    ],
)
def test_a_timestep_is_read_as_one_number_or_not_at_all(value, read):
    assert read_timestep(value) == read
