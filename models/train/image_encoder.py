"""Train the image encoder of the small image-to-video model: a CLIP vision tower beside MiniLM.

Run as `python -m ditcache.models.train.image_encoder --minutes 3`.

A frame is to land on its caption's text embedding: it is told from all other captions by cosine
(a softmax over the set, as in CLIP, with the text side frozen) and pulled to the embedding itself.
Frames are enlarged to 224x224 and normalised just as StableVideoDiffusionPipeline does it.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..data_video import animated_emoji
from ..text import TEXT_WIDTH, embed_captions
from .common import TINY, write_half
from .fitting import Loss, add_options, begin, fit

SIDE = 224
TEMPERATURE = 0.07


def build() -> CLIPVisionModelWithProjection:
    """Build the untrained encoder: three layers over 7x7 patches, projected to MiniLM's width."""
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=32,
    )
    return CLIPVisionModelWithProjection(config)


def clip_pixels(frames: torch.Tensor) -> torch.Tensor:
    """Uint8 frames [N, 3, H, W] -> what the encoder sees in the pipeline, [N, 3, 224, 224]."""
    processor = CLIPImageProcessorPil()
    large = (_resize_with_antialiasing(frames / 127.5 - 1, (SIDE, SIDE)) + 1) / 2
    shape = (1, 3, 1, 1)
    mean = torch.tensor(processor.image_mean).view(shape)
    return (large - mean) / torch.tensor(processor.image_std).view(shape)


@torch.no_grad()
def embed_frames(encoder: CLIPVisionModelWithProjection, frames: torch.Tensor) -> torch.Tensor:
    """Image embeddings [N, 384] of uint8 frames [N, 3, H, W]."""
    parts = [encoder(clip_pixels(part)).image_embeds for part in frames.split(64)]
    return torch.cat(parts)


def train(args: argparse.Namespace) -> None:
    """Run or resume the training, then write the pipeline's feature extractor."""
    begin(args)
    data = animated_emoji(args.cache, size=32)
    _, pooled = embed_captions(data.captions)
    directions = F.normalize(pooled, dim=-1)
    encoder = build()

    def loss_of(_step: int) -> Loss:
        chosen = torch.randint(len(data), (args.batch,))
        frames = data.phases[chosen, torch.randint(data.phases.shape[1], (args.batch,))]
        with torch.autocast("cpu", torch.bfloat16):
            embedded = encoder(clip_pixels(frames)).image_embeds.float()
        logits = F.normalize(embedded, dim=-1) @ directions.T / TEMPERATURE
        named = F.cross_entropy(logits, chosen)
        distance = F.mse_loss(embedded, pooled[chosen])
        hits = (logits.argmax(dim=1) == chosen).float().mean()
        return named + distance, {"named": named, "distance": distance, "hits": hits}

    fit(
        encoder,
        loss_of,
        args,
        name="image_encoder",
        write=partial(write_half, out=args.out),
        log_to=args.out.parent / "image_encoder_log.json",
        betas=(0.9, 0.999),
        weight_decay=0.05,
        facts={"clips": len(data)},
    )
    CLIPImageProcessorPil().save_pretrained(str(args.out.parent / "feature_extractor"))


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_options(parser, minutes=3, batch=48, lr=1e-3, ema=0.995)
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--out", type=Path, default=TINY / "svd-emoji" / "image_encoder")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
