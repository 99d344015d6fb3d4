from __future__ import annotations

import pytest
import torch
from ditcache.models import zoo
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("diffusers")

# Billions of parameters as published, and TFLOP of one forward call at the default size.
PUBLISHED = {
    "flux-dev": (11.9, 74.4),
    "flux-schnell": (11.9, 69.5),
    "wan2.1-1.3b": (1.42, 283.0),
    "wan2.1-14b": (14.3, 1678.4),
    "sd3.5-large": (8.06, 31.1),
    "dit-xl-2": (0.75, 0.237),
    "svd-xt": (1.52, 79.9),
    "qwen-image": (20.4, 70.6),
    "pixart-sigma": (0.611, 6.63),
    "sana-1.6b": (1.60, 2.97),
    "hunyuan-video": (12.8, 12069),
    "ltx": (1.92, 37.1),
    "flux-emoji": (0.00707, 0.000646),
    "dit-digits": (0.00164, 0.000127),
}


def test_every_architecture_is_expected():
    assert set(zoo.names()) == set(PUBLISHED)


@pytest.mark.parametrize("name", zoo.names())
def test_parameters_and_flops_are_the_published_ones(name):
    model = zoo.build(name)
    with torch.no_grad(), FlopCounterMode(display=False) as count:
        output = model.module(**model.kwargs)[0]
    billions, teraflops = PUBLISHED[name]
    assert output.device.type == "meta"
    assert output.is_floating_point()
    assert model.info.parameters / 1e9 == pytest.approx(billions, rel=0.02)
    assert count.get_total_flops() / 1e12 == pytest.approx(teraflops, rel=0.02)


def test_size_and_batch_are_honoured():
    model = zoo.build("flux-dev", height=512, width=768, batch=3)
    assert model.kwargs["hidden_states"].shape == (3, 32 * 48, 64)
    assert model.kwargs["img_ids"].shape == (32 * 48, 3)
    assert zoo.build("wan2.1-1.3b", frames=17).kwargs["hidden_states"].shape[2] == 5


def test_small_models_run_for_real():
    model = zoo.build("flux-emoji", device="cpu", dtype=torch.float32)
    assert model.module(**model.kwargs)[0].shape == (1, 64, 24)


def test_tiny_entries_agree_with_their_checkpoints():
    import json

    from ditcache.models import tiny

    for name, folder in (
        ("flux-emoji", tiny.FLUX_EMOJI / "transformer"),
        ("dit-digits", tiny.DIT_DIGITS),
    ):
        saved = json.loads((folder / "config.json").read_text())
        for key, value in zoo.ARCHITECTURES[name].config.items():
            assert saved[key] == (list(value) if isinstance(value, tuple) else value)


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("flux-def", {}, "flux-dev"),
        ("flux-dev", {"height": 1000}, "multiples of 16"),
        ("flux-dev", {"frames": 2}, "still images"),
        ("wan2.1-14b", {"frames": 80}, "multiple of 4"),
        ("dit-xl-2", {"height": 512}, "height equals width"),
        ("sana-1.6b", {"batch": 0}, "positive"),
    ],
)
def test_what_cannot_be_built_says_why(name, size, said):
    with pytest.raises(ValueError, match=said):
        zoo.build(name, **size)
