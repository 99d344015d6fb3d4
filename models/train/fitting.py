"""The loop of every training script: AdamW over wall time, moving average, log, resumable state."""

from __future__ import annotations

import argparse
import copy
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .log import Log

Model = TypeVar("Model", bound=nn.Module)
Loss = Tensor | tuple[Tensor, Mapping[str, Tensor]]


def add_options(
    parser: argparse.ArgumentParser,
    *,
    minutes: float,
    batch: int,
    lr: float,
    ema: float,
    log_every: int = 50,
    save_minutes: float = 3.0,
    seed: int = 0,
) -> None:
    """Add the options that `begin` and `fit` read, and `--batch`, with these defaults."""
    parser.add_argument("--minutes", type=float, default=minutes, help="wall time of training")
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--ema", type=float, default=ema, help="decay of the averaged weights")
    parser.add_argument("--seed", type=int, default=seed)
    parser.add_argument("--log-every", type=int, default=log_every, help="steps")
    parser.add_argument("--save-minutes", type=float, default=save_minutes)
    parser.add_argument("--work", type=Path, default=Path("out/train"), help="resumable state, log")


def begin(args: argparse.Namespace) -> None:
    """Settings of a process that trains, to be made before anything is drawn or built.

    Attention is by matrix products: at 80 tokens the fused CPU kernel took 40% of a training step.
    The switches are named after CUDA; the CPU's dispatcher heeds them too.
    """
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)


def warmup_cosine(progress: float, *, warmup: float = 0.02, floor: float = 0.01) -> float:
    """Learning-rate factor at `progress` in [0, 1]: linear warm-up, then cosine to `floor`."""
    if progress < warmup:
        return max(progress, 1e-4) / warmup
    done = min((progress - warmup) / (1 - warmup), 1.0)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))


class Ema:
    """Exponential moving average of a module's parameters, with a warm-up of its horizon."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.shadow = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Mix the current parameters in; early on the average is short."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = [p.detach() for p in module.parameters()]
        torch._foreach_lerp_(self.shadow, current, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the average into `module`, which has the same architecture."""
        for target, value in zip(module.parameters(), self.shadow, strict=True):
            target.copy_(value)


class _Means:
    """Running means of named scalars; their values are waited for only when taken."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, torch.zeros(())) + value.detach().float()
        self.count += 1

    def take(self) -> dict[str, float]:
        means = {name: float(total) / self.count for name, total in self.sums.items()}
        self.sums, self.count = {}, 0
        return means


@dataclass
class _Run:
    """What a training run consists of between two steps."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    ema: Ema
    log: Log
    step: int = 0

    def save(self, path: Path) -> None:
        """Write all that `resume` needs; a reader never sees half a file."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": self.ema.shadow,
            "step": self.step,
            "seconds": self.log.seconds,
        }
        torch.save(state, partial)
        os.replace(partial, path)

    def resume(self, path: Path) -> None:
        """Go on from a saved state if there is one."""
        if not path.exists():
            return
        # Tensors, numbers, strings only.
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.ema.shadow = state["ema"]
        self.step = state["step"]
        self.log.go_on(self.step, state["seconds"])


def fit(
    model: Model,
    loss_of: Callable[[int], Loss],
    args: argparse.Namespace,
    *,
    name: str,
    write: Callable[[Model], None],
    log_to: Path,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.01,
    target: nn.Module | None = None,
    judge: Callable[[Model], Mapping[str, float]] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Train, or go on training, until `args.minutes` of wall time are spent.

    Args:
        model: what is trained; its parameters are changed in place.
        loss_of: draws a batch and gives its loss, a scalar, or that and more scalars for the log
            by name; it is told how many steps were made before.
        args: `add_options`' and the script's own, all of which go into the log.
        name: of state and log in `args.work`.
        write: puts a model with the averaged weights, in eval mode, where it belongs; called every
            few minutes and at the end. It may change what it gets.
        log_to: the file of the log that lies beside the weights.
        betas: AdamW's.
        weight_decay: AdamW's.
        target: a module of the model's architecture that is given the averaged weights before
            each step, for losses that look at them.
        judge: figures of the finished model for the log's last record.
        facts: more for the log's options.

    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, betas=betas, weight_decay=weight_decay, fused=True
    )
    facts = dict(facts or {})
    log = Log(args.work / f"{name}.json", vars(args) | facts)
    run = _Run(model, optimizer, Ema(model, args.ema), log)
    state = args.work / f"{name}.state"
    run.resume(state)
    # A resumed run must not see the first run's sequence again.
    torch.manual_seed(args.seed + run.step)
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters"
    counts = (f"{value} {what}" for what, value in facts.items())
    print(", ".join([size, *counts, f"step {run.step}"]), flush=True)

    def averaged() -> Model:
        final = copy.deepcopy(model).eval()
        run.ema.copy_to(final)
        return final

    def save() -> None:
        run.save(state)
        write(averaged())
        log.write(log_to)

    saved, means = log.seconds, _Means()
    while (seconds := log.seconds) < 60 * args.minutes:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * warmup_cosine(seconds / (60 * args.minutes))
        if target is not None:
            run.ema.copy_to(target)
        made = loss_of(run.step)
        loss, figures = made if isinstance(made, tuple) else (made, {})
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        run.step += 1
        run.ema.update(model, run.step)
        means.add({"loss": loss, **figures})
        if run.step % args.log_every == 0:
            log.add(run.step, **means.take())
        if log.seconds - saved > 60 * args.save_minutes:
            saved = log.seconds
            save()
    save()
    if judge is not None:
        log.add(run.step, **judge(averaged()))
        log.write(log_to)
