from __future__ import annotations

import pytest
import torch
from ditcache.models import tiny
from ditcache.models.interpolation import double_rate

pytest.importorskip("diffusers")
pytest.importorskip("transformers")


def animate(pipeline, inputs, *, seed=0, **options):
    settings = {"height": 32, "width": 32, "num_inference_steps": 2, "output_type": "pt"}
    return pipeline(
        **inputs.kwargs(),
        **settings | options,
        generator=torch.Generator().manual_seed(seed),
    ).frames


def test_inputs_are_split_and_never_overlap():
    for inputs in (tiny.wan_emoji_prompts(), tiny.svd_emoji_frames()):
        assert len(inputs) == len(set(inputs.captions)) >= 64
        assert len(inputs.calibration) >= 16
        assert not set(inputs.calibration.captions) & set(inputs.evaluation.captions)
        assert len(inputs.calibration) + len(inputs.evaluation) == len(inputs)
        assert inputs[-1].captions == (inputs.captions[-1],)
    assert tiny.wan_emoji_prompts().captions == tiny.svd_emoji_frames().captions
    first = tiny.svd_emoji_frames()[:3]
    assert first.frames.shape == (3, 3, 32, 32)
    assert first.frames.dtype == torch.uint8
    assert [image.size for image in first.images()] == [(32, 32)] * 3
    prompts = tiny.wan_emoji_prompts(dtype=torch.bfloat16)[:2]
    assert prompts.prompt_embeds.shape == (2, 16, 384)
    assert prompts.negative_prompt_embeds.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wan_pipeline_runs_guided(dtype):
    prompts = tiny.wan_emoji_prompts(dtype=dtype)[:2]
    clips = animate(tiny.load_wan_emoji(dtype=dtype), prompts, num_frames=9, guidance_scale=3.0)
    assert clips.shape == (2, 9, 3, 32, 32)
    assert torch.isfinite(clips).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_svd_pipeline_runs_guided(dtype):
    clips = animate(tiny.load_svd_emoji(dtype=dtype), tiny.svd_emoji_frames()[:2])
    assert clips.shape == (2, 9, 3, 32, 32)
    assert torch.isfinite(clips).all()


def test_svd_makes_keyframes():
    first = tiny.svd_emoji_frames()[:1]
    clips = animate(tiny.load_svd_emoji(), first, num_frames=5, fps=4)
    assert clips.shape == (1, 5, 3, 32, 32)


def test_wan_clips_move_and_look_like_their_captions():
    # Each prompt's own first frame is nearer to its clip than other prompts' are.
    prompts = tiny.wan_emoji_prompts().evaluation[:16]
    originals = tiny.svd_emoji_frames().named(*prompts.captions).frames / 255
    clips = animate(
        tiny.load_wan_emoji(), prompts, num_frames=9, guidance_scale=3.0, num_inference_steps=16
    )
    coarse = [torch.nn.functional.avg_pool2d(x, 4).flatten(1) for x in (clips[:, 0], originals)]
    nearest = torch.cdist(*coarse).argmin(dim=1)
    assert (nearest == torch.arange(16)).float().mean() >= 0.5
    assert (clips.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) > 0.005).float().mean() >= 0.75


def test_svd_clips_move_and_begin_with_their_picture():
    first = tiny.svd_emoji_frames().evaluation[:16]
    clips = animate(tiny.load_svd_emoji(), first, num_inference_steps=12)
    wanted = first.frames / 255
    apart = (clips[:, 0] - wanted).abs().mean(dim=(1, 2, 3))
    shuffled = (clips[:, 0] - wanted.roll(1, dims=0)).abs().mean(dim=(1, 2, 3))
    assert (apart < shuffled).float().mean() >= 0.9
    assert (clips.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) > 0.005).float().mean() >= 0.75


def test_four_steps_move_more_than_the_full_model_in_four_steps():
    first = tiny.svd_emoji_frames().evaluation[:8]
    torch.manual_seed(0)  # the four-step scheduler draws from the global generator
    settings = {"num_inference_steps": 4, "max_guidance_scale": 1.0}
    clips = animate(tiny.load_svd_emoji(variant="four-step"), first, **settings)
    full = animate(tiny.load_svd_emoji(), first, **settings)
    wanted = first.frames / 255
    apart = (clips[:, 0] - wanted).abs().mean(dim=(1, 2, 3))
    shuffled = (clips[:, 0] - wanted.roll(1, dims=0)).abs().mean(dim=(1, 2, 3))
    assert (apart < shuffled).float().mean() >= 0.75
    assert clips.diff(dim=1).abs().mean() > full.diff(dim=1).abs().mean()


def test_guided_model_is_nearer_to_guidance_in_one_call_than_the_full_one():
    first = tiny.svd_emoji_frames().evaluation[:8]
    wanted = animate(tiny.load_svd_emoji(), first, num_inference_steps=12, max_guidance_scale=2.0)
    settings = {"num_inference_steps": 12, "max_guidance_scale": 1.0}
    guided = animate(tiny.load_svd_emoji(variant="guided"), first, **settings)
    free = animate(tiny.load_svd_emoji(), first, **settings)
    assert (guided - wanted).square().mean() < 0.7 * (free - wanted).square().mean()


@pytest.mark.parametrize("name", ["svd", "wan"])
def test_unknown_and_missing_variants_say_what_to_do(name, monkeypatch, tmp_path):
    load = getattr(tiny, f"load_{name}_emoji")
    with pytest.raises(ValueError, match="four-step"):
        load(variant="five-step")
    monkeypatch.setattr(f"ditcache.models.tiny.video.{name.upper()}_EMOJI", tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name}_distill guidance"):
        load(variant="guided")
    with pytest.raises(FileNotFoundError, match=f"{name}_distill consistency"):
        load(variant="four-step")


def test_wan_gives_guidance_in_one_call():
    prompts = tiny.wan_emoji_prompts().evaluation[:8]
    settings = {"num_frames": 9, "num_inference_steps": 12}
    wanted = animate(tiny.load_wan_emoji(), prompts, guidance_scale=3.0, **settings)
    guided = animate(tiny.load_wan_emoji(variant="guided"), prompts, guidance_scale=1.0, **settings)
    free = animate(tiny.load_wan_emoji(), prompts, guidance_scale=1.0, **settings)
    assert (guided - wanted).square().mean() < 0.2 * (free - wanted).square().mean()


def test_wan_in_four_steps_shows_its_captions_and_moves():
    prompts = tiny.wan_emoji_prompts().evaluation[:16]
    originals = tiny.svd_emoji_frames().named(*prompts.captions).frames / 255
    torch.manual_seed(0)  # the four-step scheduler draws from the global generator
    clips = animate(
        tiny.load_wan_emoji(variant="four-step"), prompts,
        num_frames=9, guidance_scale=1.0, num_inference_steps=4,
    )  # fmt: skip
    coarse = [torch.nn.functional.avg_pool2d(x, 4).flatten(1) for x in (clips[:, 0], originals)]
    nearest = torch.cdist(*coarse).argmin(dim=1)
    assert (nearest == torch.arange(16)).float().mean() >= 0.5
    assert (clips.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) > 0.005).float().mean() >= 0.75


def test_interpolation_puts_frames_between():
    model = tiny.load_interpolation_emoji()
    frames = tiny.svd_emoji_frames().frames[:6].reshape(2, 3, 3, 32, 32) / 255
    with torch.no_grad():
        doubled = double_rate(model, frames)
        still = model(frames[:, 0], frames[:, 0])
    assert doubled.shape == (2, 5, 3, 32, 32)
    assert torch.equal(doubled[:, ::2], frames)
    # Between two equal frames lies about the same frame.
    assert (still - frames[:, 0]).abs().mean() < 0.02
    with pytest.raises(ValueError, match="multiple of 8"):
        model(frames[:, 0, :, :30], frames[:, 1, :, :30])
