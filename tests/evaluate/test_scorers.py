"""Famous names only for those who bring the weights."""

from __future__ import annotations

import pytest
import torch
from ditcache.bench.checksums import WeightsError, locate, sha256
from ditcache.bench.evaluate.blocks import pairs
from ditcache.bench.evaluate.dual_encoder import NAME, dual_encoder
from ditcache.bench.evaluate.scorers import distance_name, panel
from ditcache.bench.reference import real_emoji
from torch import Tensor, nn


def test_without_weights_there_are_only_stand_ins_under_their_own_names():
    found = panel({})
    assert list(found.spaces) == ["EffLite0"]
    assert [s.name for s in found.scorers] == [NAME]
    assert set(found.missing) == {"clip", "inception", "aesthetic", "image-reward", "lpips"}
    assert distance_name("EffLite0") == "FD-EffLite0"


def test_real_pictures_fit_their_names_better_than_others():
    real = real_emoji()
    captions = list(real.index)[:200]
    own = dual_encoder().similarity(real.features[:200], captions)
    other = dual_encoder().similarity(real.features[:200].roll(7, 0), captions)
    assert own.mean() > other.mean() + 0.3


def test_clip_is_read_from_a_folder(tmp_path):
    import json

    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 600}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "image_size": 32}
    heads = {"num_attention_heads": 2}
    config = CLIPConfig(
        text_config=text | heads, vision_config=vision | heads | {"patch_size": 8}, projection_dim=8
    )
    CLIPModel(config).save_pretrained(tmp_path)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt")).save_pretrained(
        tmp_path
    )
    found = panel({"clip": str(tmp_path)})
    assert "clip" not in found.missing, found.missing
    scorer = next(s for s in found.scorers if s.name == "CLIP-sim")
    scores = scorer(torch.rand(2, 3, 64, 64), ["a cat", "a dog"], {})
    assert scores.shape == (2,)
    assert scores.abs().max() <= 1


class FakeInception(nn.Module):
    def forward(self, pixels: Tensor, return_features: bool = True) -> Tensor:
        return pixels.float().mean(dim=(2, 3))


def test_inception_is_a_torchscript_file(tmp_path):
    path = tmp_path / "inception.pt"
    torch.jit.script(FakeInception()).save(str(path))
    found = panel({"inception": str(path)})
    assert found.spaces["Inception"](torch.rand(3, 3, 8, 8)).shape == (3, 3)
    assert distance_name("Inception") == "FID"
    wrong = panel({"inception": f"{path}#sha256={'0' * 64}"})
    assert "SHA-256" in wrong.missing["inception"]


class FakePair(nn.Module):
    """As `lpips.LPIPS`: two pictures in [-1, 1], [N, 1, 1, 1] out."""

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return (first - second).square().mean(dim=(1, 2, 3), keepdim=True)


class FakeFeatures(nn.Module):
    """As StyleGAN's VGG-16: bytes' range in, features out whose squared difference is LPIPS."""

    def forward(self, x: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips
        assert not resize_images
        return (x / 255).flatten(1) / (x[0].numel() ** 0.5)


@pytest.mark.parametrize(("network", "scale"), [(FakePair(), 4.0), (FakeFeatures(), 1.0)])
def test_lpips_is_a_torchscript_file_of_either_form(tmp_path, network, scale):
    path = tmp_path / "lpips.pt"
    torch.jit.script(network).save(str(path))
    found = panel({"lpips": str(path)})
    first, second = torch.rand(2, 3, 3, 8, 8)
    wanted = scale * (first - second).square().mean((1, 2, 3)).double()
    torch.testing.assert_close(found.distances["LPIPS"](first, second), wanted)
    frames = torch.stack((first, second))[:, :1]
    paired = pairs(frames, frames.flip(0), found.distances)
    assert paired["pair:LPIPS"].dtype == torch.float64
    assert "lpips" in panel({"lpips": str(tmp_path / "absent.pt")}).missing


def test_weights_are_checked(tmp_path):
    path = tmp_path / "w.bin"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert locate(f"{path}#sha256={sha256(path)}") == path
    assert locate(f"{tmp_path}#sha256={sha256(tmp_path)}") == tmp_path
    with pytest.raises(WeightsError, match="no such file"):
        locate(str(tmp_path / "absent"))
