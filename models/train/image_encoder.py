"""Train the image encoder of the small image-to-video model: a CLIP vision tower beside MiniLM.

Run as `python -m ditcache.models.train.image_encoder --minutes 3`.

A frame is to land on its caption's text embedding: it is told from all other captions by cosine
(a softmax over the set, as in CLIP, with the text side frozen) and pulled to the embedding itself.
Frames are enlarged to 224x224 and normalised just as StableVideoDiffusionPipeline does it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import (
    _resize_with_antialiasing,
)
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from ..data_video import animated_emoji
from ..text import TEXT_WIDTH, embed_captions
from .common import (
    TINY,
    Ema,
    Log,
    parameters_in_millions,
    plain_attention,
    warmup_cosine,
    write_averaged,
)

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
    """Train, then write the averaged weights and the pipeline's feature extractor."""
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    plain_attention()
    data = animated_emoji(args.cache, size=32)
    _, pooled = embed_captions(data.captions)
    directions = F.normalize(pooled, dim=-1)
    encoder = build()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=args.lr, weight_decay=0.05, fused=True)
    ema = Ema(encoder, 0.995)
    log = Log(args.work / "image_encoder.json", vars(args))
    print(f"{parameters_in_millions(encoder):.2f}M parameters, {len(data)} clips", flush=True)
    step = 0
    while (progress := log.seconds / (60 * args.minutes)) < 1:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_cosine(progress)
        chosen = torch.randint(len(data), (args.batch,))
        frames = data.phases[chosen, torch.randint(data.phases.shape[1], (args.batch,))]
        with torch.autocast("cpu", torch.bfloat16):
            embedded = encoder(clip_pixels(frames)).image_embeds.float()
        logits = F.normalize(embedded, dim=-1) @ directions.T / TEMPERATURE
        named = F.cross_entropy(logits, chosen)
        distance = F.mse_loss(embedded, pooled[chosen])
        loss = named + distance
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        optimizer.step()
        step += 1
        ema.update(encoder, step)
        if step % 50 == 0:
            hits = (logits.argmax(dim=1) == chosen).float().mean()
            log.add(step, named=named.item(), distance=distance.item(), hits=hits.item())
    write_averaged(encoder, ema, args.out)
    CLIPImageProcessorPil().save_pretrained(str(args.out.parent / "feature_extractor"))
    log.write(args.out.parent / "image_encoder_log.json")


def main() -> None:
    """Parse options and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3, help="wall time of training")
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path, help="where the clips are, or are fetched to")
    parser.add_argument("--out", type=Path, default=TINY / "svd-emoji" / "image_encoder")
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="the log")
    train(parser.parse_args())


if __name__ == "__main__":
    main()
