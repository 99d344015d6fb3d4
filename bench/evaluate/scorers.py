"""What sees a picture: feature spaces for Fréchet distances, and scores of one picture each.

Only EfficientNet-Lite0 and MiniLM come with packages. The famous measures (FID, CLIP, LPIPS,
ImageReward, the LAION aesthetic score) exist when their weights are given, and only then under
their names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from ..checksums import WeightsError, locate
from ..compare.figure import as_image
from ..features import SPACE, features
from .dual_encoder import NAME, dual_encoder

ROLES = ("clip", "inception", "aesthetic", "image-reward", "lpips")
INCEPTION, LPIPS = "Inception", "LPIPS"


class Scorer(Protocol):
    """One number a picture; `pictures` are [N, 3, H, W] in [0, 1], `captions` N texts."""

    name: str

    def __call__(self, pictures: Tensor, captions: list[str], seen: dict[str, Tensor]) -> Tensor:
        """Give [N] float64; `seen` has the feature spaces' features of the same pictures."""
        ...


Distance = Callable[[Tensor, Tensor], Tensor]
"""[N] float64 between pictures [N, 3, H, W] in [0, 1] of two sets."""


@dataclass
class Panel:
    """All that judges single pictures, or two of them; `missing` says what cannot, and why."""

    spaces: dict[str, Callable[[Tensor], Tensor]]
    scorers: list[Scorer] = field(default_factory=list["Scorer"])
    distances: dict[str, Distance] = field(default_factory=dict[str, Distance])
    missing: dict[str, str] = field(default_factory=dict[str, str])


def panel(weights: dict[str, str], device: str = "cpu") -> Panel:
    """Set up everything that needs no weights or whose weights were given.

    A role whose weights cannot be used is listed as missing with its reason; the rest goes on.
    """
    found = Panel(spaces={SPACE: lambda x: features(x.cpu())}, scorers=[DualEncoderSimilarity()])
    makers: dict[str, Callable[[Path], Any]] = {
        "inception": lambda path: Inception(path, device),
        "clip": lambda path: ClipSimilarity(path, device),
        "image-reward": lambda path: ImageReward(path, device),
        "lpips": lambda path: Lpips(path, device),
    }
    for role in ROLES:
        if role not in weights:
            found.missing[role] = f"no weights given (--weights {role}=PATH_OR_HUB)"
    for role, make in makers.items():
        if role not in weights:
            continue
        try:
            made = make(locate(weights[role]))
        except (WeightsError, ImportError, OSError, RuntimeError, ValueError, KeyError) as error:
            found.missing[role] = " ".join(str(error).split())[:300]
            continue
        if role == "inception":
            found.spaces[INCEPTION] = made
        elif role == "lpips":
            found.distances[LPIPS] = made
        else:
            found.scorers.append(made)
    if "aesthetic" in weights:
        try:
            clip = next(s for s in found.scorers if isinstance(s, ClipSimilarity))
            found.scorers.append(Aesthetic(locate(weights["aesthetic"]), clip))
        except StopIteration:
            found.missing["aesthetic"] = "it reads CLIP ViT-L/14 features: give --weights clip=..."
        except (WeightsError, RuntimeError, KeyError, ValueError) as error:
            found.missing["aesthetic"] = " ".join(str(error).split())[:300]
    return found


def distance_name(space: str) -> str:
    """FID is Inception's; any other space names its distance after itself."""
    return "FID" if space == INCEPTION else f"FD-{space}"


class DualEncoderSimilarity:
    name = NAME

    def __call__(self, pictures: Tensor, captions: list[str], seen: dict[str, Tensor]) -> Tensor:
        return torch.from_numpy(dual_encoder().similarity(seen[SPACE], captions))


class Inception:
    """TorchScript Inception-v3 as StyleGAN's metrics load it: bytes in, 2,048 features out."""

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.network = torch.jit.load(str(path), map_location=device).eval()

    @torch.inference_mode()
    def __call__(self, pictures: Tensor) -> Tensor:
        pixels = pictures.clamp(0, 1).mul(255).round().byte().to(self.device)
        return self.network(pixels, return_features=True).float().cpu().clone()


class Lpips:
    """LPIPS as TorchScript, in one of the two forms in which it is passed around.

    `forward(first, second)` on [-1, 1], as a traced `lpips.LPIPS`; or StyleGAN's VGG-16, whose
    features with `return_lpips=True`, of [0, 255], are LPIPS when their difference is squared.
    """

    def __init__(self, path: Path, device: str) -> None:
        self.device = device
        self.network: Any = torch.jit.load(str(path), map_location=device).eval()
        names = {a.name for a in self.network.forward.schema.arguments}
        self.features = "return_lpips" in names

    @torch.inference_mode()
    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        a, b = (x.clamp(0, 1).float().to(self.device) for x in (first, second))
        if self.features:
            both = self.network(torch.cat((a, b)) * 255, resize_images=False, return_lpips=True)
            made, other = both.chunk(2)
            found = (made - other).square().sum(1)
        else:
            found = self.network(a * 2 - 1, b * 2 - 1).flatten()
        return found.double().cpu().clone()


class ClipSimilarity:
    """Cosine of CLIP's image and text embeddings, by transformers, from a folder or snapshot."""

    name = "CLIP-sim"

    def __init__(self, path: Path, device: str) -> None:
        from transformers import AutoTokenizer, CLIPModel

        self.device = device
        self.model: Any = CLIPModel.from_pretrained(str(path))
        self.model.to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(str(path))
        self.side = int(self.model.config.vision_config.image_size)

    @torch.inference_mode()
    def images(self, pictures: Tensor) -> Tensor:
        """Embeddings [N, E] of pictures, resized and normalised as CLIP was trained."""
        x = torch.nn.functional.interpolate(
            pictures.float(), (self.side, self.side), mode="bicubic", antialias=True
        ).clamp(0, 1)
        mean = torch.tensor((0.48145466, 0.4578275, 0.40821073)).view(1, 3, 1, 1)
        std = torch.tensor((0.26862954, 0.26130258, 0.27577711)).view(1, 3, 1, 1)
        pixels = ((x.cpu() - mean) / std).to(self.device)
        return _pooled(self.model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, captions: list[str], seen: dict[str, Tensor]) -> Tensor:
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")
        texts = _pooled(self.model.get_text_features(**tokens.to(self.device)))
        similar = torch.nn.functional.cosine_similarity(self.images(pictures), texts)
        return similar.double().cpu().clone()


class Aesthetic:
    """LAION's improved aesthetic predictor: a stack of linear layers on CLIP ViT-L/14 features."""

    name = "aesthetic"

    def __init__(self, path: Path, clip: ClipSimilarity) -> None:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        names = sorted((k for k in state if k.endswith(".weight")), key=_layer_number)
        layers: list[nn.Module] = []
        for name in names:
            layer = nn.Linear(state[name].shape[1], state[name].shape[0])
            layer.load_state_dict(
                {"weight": state[name], "bias": state[name.removesuffix("weight") + "bias"]}
            )
            layers.append(layer)
        self.head = nn.Sequential(*layers).eval()
        self.clip = clip
        width = clip.model.config.projection_dim
        if state[names[0]].shape[1] != width:
            wanted = state[names[0]].shape[1]
            raise ValueError(f"the head reads {wanted} features, CLIP has {width}")

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, captions: list[str], seen: dict[str, Tensor]) -> Tensor:
        found = torch.nn.functional.normalize(self.clip.images(pictures).float().cpu(), dim=1)
        return self.head(found)[:, 0].double().clone()


class ImageReward:
    """ImageReward's own package with its weights."""

    name = "ImageReward"

    def __init__(self, path: Path, device: str) -> None:
        import ImageReward as package  # pyright: ignore[reportMissingImports]

        self.model = package.load(str(path), device=device)

    def __call__(self, pictures: Tensor, captions: list[str], seen: dict[str, Tensor]) -> Tensor:
        images: list[Image.Image] = [as_image(p) for p in pictures]
        pairs = zip(captions, images, strict=True)
        scores = [float(self.model.score(c, [image])) for c, image in pairs]
        return torch.tensor(scores, dtype=torch.float64)


def _layer_number(name: str) -> int:
    return int(next(part for part in name.split(".") if part.isdigit()))


def _pooled(found: Any) -> Tensor:
    """Transformers 5 wraps the projected embeddings, 4 does not."""
    return found if isinstance(found, Tensor) else found.pooler_output
