from __future__ import annotations

import contextlib

import pytest
import torch
from ditcache.models import tiny
from safetensors import safe_open

pytest.importorskip("diffusers")


def test_no_pickle_and_small_files():
    weights = list(tiny.HERE.rglob("*.safetensors"))
    assert {path.relative_to(tiny.HERE).parts[0] for path in weights} == {
        "dit-digits",
        "flux-emoji",
        "interpolation-emoji",
        "svd-emoji",
        "wan-emoji",
    }
    for path in tiny.HERE.rglob("*"):
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}
        assert not path.is_file() or path.stat().st_size <= 16 * 2**20
    for path in weights:
        with safe_open(path, framework="pt") as file:
            assert all(torch.isfinite(file.get_tensor(name)).all() for name in file.keys())  # noqa: SIM118


def test_prompts_select_and_never_overlap():
    prompts = tiny.flux_emoji_prompts()
    assert len(prompts) == len(set(prompts.captions)) >= 64
    assert not set(prompts.calibration.captions) & set(prompts.evaluation.captions)
    assert len(prompts.calibration) + len(prompts.evaluation) == len(prompts)
    named = prompts.named("red apple", "koala")
    assert named.captions == ("red apple", "koala")
    at = prompts.captions.index("koala")
    torch.testing.assert_close(named.prompt_embeds[1], prompts.prompt_embeds[at])
    assert prompts[-1].captions == (prompts.captions[-1],)
    assert prompts[:4].to("cpu", torch.bfloat16).prompt_embeds.dtype == torch.bfloat16
    with pytest.raises(KeyError, match="embed_captions"):
        prompts.named("no such thing")
    with pytest.raises(IndexError):
        prompts[len(prompts)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_flux_pipeline_runs_guided(dtype):
    pipeline = tiny.load_flux_emoji(dtype=dtype)
    prompts = tiny.flux_emoji_prompts(dtype=dtype)[:2]
    images = pipeline(
        **prompts.kwargs(),
        height=64,
        width=64,
        true_cfg_scale=2.5,
        num_inference_steps=2,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    assert images.shape == (2, 3, 64, 64)
    assert torch.isfinite(images).all()


def test_flux_samples_look_like_their_captions():
    pytest.importorskip("fontTools")
    from ditcache.models import data

    if not data.FONT.is_file():
        pytest.skip("fonts-noto-color-emoji is not installed")
    prompts = tiny.flux_emoji_prompts().evaluation[:16]
    samples = tiny.load_flux_emoji()(
        **prompts.kwargs(),
        height=64,
        width=64,
        true_cfg_scale=2.5,
        num_inference_steps=20,
        output_type="pt",
        generator=torch.Generator().manual_seed(0),
    ).images
    emoji = data.emoji()
    of = dict(zip(emoji.captions, emoji.images, strict=True))
    originals = torch.stack([of[caption] for caption in prompts.captions]) / 255
    coarse = [torch.nn.functional.avg_pool2d(x, 4).flatten(1) for x in (samples, originals)]
    nearest = torch.cdist(*coarse).argmin(dim=1)
    assert (nearest == torch.arange(16)).float().mean() >= 0.5


def test_digits_are_sampled_in_a_scope():
    seen = []

    @contextlib.contextmanager
    def scope(timesteps):
        seen.append(timesteps)
        yield

    model = tiny.load_dit_digits()
    make = lambda **more: tiny.sample_digits(  # noqa: E731
        model, [3, 7], 4, generator=torch.Generator().manual_seed(0), **more
    )
    scoped = make(step_scope=scope)
    assert scoped.shape == (2, 1, 8, 8)
    assert torch.equal(scoped, make())
    assert seen[0].tolist() == [1000, 750, 500, 250]
    assert not torch.equal(scoped, make(guidance=1.0))


def test_digits_are_recognisable():
    pytest.importorskip("sklearn")
    from ditcache.models.data import digits
    from sklearn.neighbors import KNeighborsClassifier

    images, classes = digits()
    judge = KNeighborsClassifier(5).fit(images.flatten(1).numpy(), classes.numpy())
    labels = torch.arange(10).repeat(4)
    samples = tiny.sample_digits(
        tiny.load_dit_digits(), labels, 20, generator=torch.Generator().manual_seed(0)
    )
    assert judge.score(samples.flatten(1).numpy(), labels.numpy()) > 0.9
