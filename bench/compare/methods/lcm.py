"""M7: consistency-distilled weights with a consistency scheduler, four steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import ditcache

from ..subjects import Subject
from .base import Method, MethodError, Setup, Stage
from .weights import apply_arguments, given, replace_denoiser

STEPS = 4


class LatentConsistency(Method):
    """Role "lcm". A scheduler beside the weights is taken; else the one that fits the sampler."""

    name = "M7"
    title = "LCM, 4 steps"
    stage = Stage.WEIGHTS
    changes = frozenset({"the denoiser", "the number of steps", "the scheduler"})
    role = "lcm"

    def prepare(self, subject: Subject, setup: Setup) -> None:
        where = given(subject, self.role, self.name)
        with setup.clocked("load weights"):
            replace_denoiser(subject, where, self.name)
        subject.pipeline.scheduler = scheduler = _scheduler(subject, Path(where))
        subject.steps = min(STEPS, subject.steps)
        # From high noise to a little less hardly anything of the latents is left: by them alone
        # ditcache would take each step for another generation's.
        subject.scope = ditcache.generation
        setup.notes.append(f"{type(scheduler).__name__}, {subject.steps} steps")
        apply_arguments(subject, self.role, where, setup)


def _scheduler(subject: Subject, where: Path) -> Any:
    for beside in (where / "scheduler", Path(subject.schedulers.get("lcm", where))):
        configured = beside / "scheduler_config.json"
        if configured.is_file():
            name = json.loads(configured.read_text())["_class_name"]
            return getattr(diffusers, name).from_pretrained(str(beside))
    config = subject.pipeline.scheduler.config
    flow = "FlowMatch" in type(subject.pipeline.scheduler).__name__
    if flow or config.get("use_flow_sigmas"):
        return diffusers.FlowMatchLCMScheduler.from_config(config)
    if config.get("use_karras_sigmas") or config.get("timestep_type") == "continuous":
        raise MethodError(
            "M7: an LCM scheduler has discrete timesteps and this model's are continuous noise "
            "levels; put a scheduler/scheduler_config.json beside the distilled weights"
        )
    return diffusers.LCMScheduler.from_config(config)
