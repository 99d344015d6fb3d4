"""diffusers' MagCache, its ratios calibrated on this model by its own routine."""

from __future__ import annotations

import logging
import re
from collections.abc import Generator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from typing import Any

import torch
from torch import nn

from ..contestants import DoesNotApply, Family, Knobs
from .diffusers_hooks import DiffusersHook


class MagCache(DiffusersHook):
    """Skips all blocks while the accumulated change of the residual's magnitude is small."""

    def prepare(self) -> None:
        """Run its calibration on one generation of each calibration batch, and average."""
        import diffusers.hooks.mag_cache as library

        found: list[list[float]] = []
        with _listening(library.logger, found), redirect_stdout(StringIO()):
            for batch in self.arena.calibration:
                with self.enabled({"calibrate": True}) as model:
                    self.generate(model, batch)
        if not found:
            raise DoesNotApply("its calibration gave no ratios for this model")
        self.ratios = torch.tensor(found).mean(0).tolist()

    def families(self, budget: float) -> list[Family]:
        longest = [k for k in (2, 3, 5, 8, 12, 16) if k > budget - 1][:2]
        return [
            Family(
                {"max_skip_steps": skip, "retention_ratio": ratio}, "threshold", span=(0.01, 4.0)
            )
            for skip in longest
            for ratio in (0.02, 0.15)
        ]

    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        from diffusers.hooks import MagCacheConfig, apply_mag_cache

        ratios: dict[str, Any] = {} if knobs.get("calibrate") else {"mag_ratios": self.ratios}
        steps = self.arena.setting.steps
        config = MagCacheConfig(**knobs, **ratios, num_inference_steps=steps)
        self.apply(model, apply_mag_cache, config)


@contextmanager
def _listening(logger: logging.Logger, found: list[list[float]]) -> Generator[None]:
    """Read the ratios that the library logs at the end of a calibration run, each branch's."""
    handler = logging.Handler(logging.INFO)

    def emit(record: logging.LogRecord) -> None:
        listed = re.search(r"Calibration Results: \[(.*)\]", record.getMessage())
        if listed:
            found.append([float(x) for x in listed[1].split(",")])

    handler.emit = emit
    before = (logger.level, logger.propagate)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before[0])
        logger.propagate = before[1]
