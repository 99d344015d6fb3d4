"""How well a picture fits a text, offline: EfficientNet-Lite0 features mapped into MiniLM's space.

A stand-in for CLIP's similarity, under its own name. The map is a ridge regression from (centred,
normalised) image features to (centred) sentence embeddings, cut to its leading singular
directions, fitted to four fifths of the emoji and their names. Its worth on the other fifth is
stored with it. `python -m bench.evaluate.dual_encoder` makes the file again.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from ditcache.models.text import embed_captions
from torch import Tensor

from ..features import SPACE
from ..metrics import Array
from ..reference import real_emoji

NAME = f"{SPACE}-MiniLM-sim"
WEIGHTS = Path(__file__).parent.parent / "reference" / "efflite0-minilm.safetensors"
RIDGE, RANK, HELD_OUT, SEED = 1.0, 64, 0.2, 0


@dataclass(frozen=True)
class DualEncoder:
    """`image_map` [D, R] and `text_map` [E, R] into a shared space, and both centres."""

    image_centre: Tensor
    text_centre: Tensor
    image_map: Tensor
    text_map: Tensor

    def images(self, features: Tensor) -> Tensor:
        """Unit vectors [N, R] of image features [N, D]."""
        centred = F.normalize(features.double() - self.image_centre, dim=1)
        return F.normalize(centred @ self.image_map, dim=1)

    def texts(self, embeddings: Tensor) -> Tensor:
        """Unit vectors [N, R] of sentence embeddings [N, E], of any length."""
        centred = F.normalize(embeddings.double(), dim=1) - self.text_centre
        return F.normalize(centred @ self.text_map, dim=1)

    def similarity(self, features: Tensor, captions: list[str]) -> Array:
        """Cosine of each picture and its caption, [N] in -1..1."""
        _, pooled = embed_captions(captions)
        return (self.images(features) * self.texts(pooled)).sum(1).numpy()


@functools.cache
def dual_encoder() -> DualEncoder:
    """Load the committed maps."""
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        return DualEncoder(
            **{name: file.get_tensor(name).double() for name in DualEncoder.__dataclass_fields__}
        )


def fit(features: Tensor, embeddings: Tensor, *, ridge: float = RIDGE) -> DualEncoder:
    """Fit to pairs: image features [N, D] and sentence embeddings [N, E]."""
    texts = F.normalize(embeddings.double(), dim=1)
    image_centre, text_centre = features.mean(0), texts.mean(0)
    x, y = F.normalize(features - image_centre, dim=1), texts - text_centre
    gram = x @ x.T + ridge * torch.eye(len(x), dtype=torch.float64)
    left, values, right = torch.linalg.svd(x.T @ torch.linalg.solve(gram, y), full_matrices=False)
    rank = min(RANK, len(values))
    return DualEncoder(
        image_centre, text_centre, left[:, :rank] * values[:rank], right[:rank].T.contiguous()
    )


def worth(encoder: DualEncoder, features: Tensor, embeddings: Tensor) -> dict[str, float]:
    """Retrieval of N texts by their pictures: share at ranks 1 and 10, and right against wrong.

    `right_over_wrong` is the share of comparisons in which the right text is nearer.
    """
    scores = encoder.images(features) @ encoder.texts(embeddings).T
    rank = (scores > scores.diag()[:, None]).sum(1)
    others = scores.diag()[:, None] > scores
    count = len(scores)
    return {
        "pairs": count,
        "recall_at_1": round(float((rank == 0).double().mean()), 4),
        "recall_at_10": round(float((rank < 10).double().mean()), 4),
        "right_over_wrong": round(float(others.sum()) / (count * (count - 1)), 4),
    }


def main() -> None:
    """Fit on four fifths, measure on the rest, write the file."""
    real = real_emoji()
    captions = list(real.index)
    _, pooled = embed_captions(captions)
    order = torch.randperm(len(captions), generator=torch.Generator().manual_seed(SEED))
    held = int(HELD_OUT * len(captions))
    encoder = fit(real.features[order[held:]], pooled[order[held:]])
    found = worth(encoder, real.features[order[:held]], pooled[order[:held]])
    tensors = {name: tensor.half().contiguous() for name, tensor in vars(encoder).items()}
    about = {"name": NAME, "data": real.name} | {k: str(v) for k, v in found.items()}
    safetensors.torch.save_file(tensors, WEIGHTS, about)
    print(found, f"{WEIGHTS.stat().st_size / 2**10:.0f} KiB")


if __name__ == "__main__":
    main()
