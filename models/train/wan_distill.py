"""Distil the small text-to-video model: guidance into one call, or a generation into four steps.

Run as `python -m ditcache.models.train.wan_distill guidance --minutes 12`, then `… consistency
--minutes 20`, which starts from what the first has made. Neither needs clips: a student learns
from its teacher's own guided trajectories, for the prompts that come with the model.

`guidance` teaches a copy of the transformer to give the guided velocity in one call: same
scheduler, same steps, half of the work (`guidance_scale=1`).

`consistency` teaches it to jump from any point of a trajectory to its end, for four steps of
diffusers' FlowMatchLCMScheduler, which noises each jump's end anew for the next. The ends are those
that the teacher itself reaches, not the student's own from a little further on as in consistency
distillation by neighbours: at this size a trajectory costs no more than learning from it, and
nothing has to seep through from low noise to high. Half of each batch are points where the
four-step sampler itself arrives with the averaged student.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import FlowMatchLCMScheduler, WanTransformer3DModel
from torch import Tensor

from ..tiny import wan_emoji_prompts
from .common import TINY
from .distilling import SUFFIX, copies, distil, distillation_parser, pseudo_huber
from .fitting import Loss, begin
from .trajectories import Points, Pool, Start, Trajectories
from .wan import keep_residual_stream, velocity_of

SHIFT = 3.0
LATENT = (16, 5, 8, 8)
STEPS = 4
STARTS, ALL = 1024, 4096


def scheduler() -> FlowMatchLCMScheduler:
    """Build the four-step model's scheduler: noise levels 1, 0.9, 0.75 and 0.5.

    These are four steps of the teacher's own spacing. Without `shift_terminal` the last of the four
    would be at the lowest level of training, 0.003, where nothing is left to do.
    """
    return FlowMatchLCMScheduler(shift=2.0, shift_terminal=0.5)


def levels() -> Tensor:
    """Noise levels [4] at which the four-step model is called."""
    made = scheduler()
    made.set_timesteps(STEPS)
    return torch.as_tensor(made.timesteps) / made.config["num_train_timesteps"]


class Teacher:
    """The full model with its guidance."""

    def __init__(self, model: WanTransformer3DModel, guidance: float) -> None:
        self.model, self.guidance = model, guidance
        prompts = wan_emoji_prompts()
        self.tokens, self.empty = prompts.prompt_embeds, prompts.negative_prompt_embeds[:1]

    @torch.no_grad()
    def velocity(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """Guided velocity at x [B, C, T, h, w]; both branches run as one batch of 2 B."""
        tokens = torch.cat([self.tokens[prompt], self.empty.expand(len(x), -1, -1)])
        twice = velocity_of(self.model, torch.cat([x, x]), torch.cat([sigma, sigma]), tokens)
        conditional, free = twice.chunk(2)
        return free + self.guidance * (conditional - free)

    def noise(self, count: int) -> Start:
        """Begin `count` generations: noise, and any of the prompts."""
        prompt = torch.randint(len(self.tokens), (count,))
        return Start(torch.randn(count, *LATENT), torch.ones(count), prompt)


class Student:
    """The four-step model: what FlowMatchLCMScheduler makes of the transformer's output."""

    def __init__(self, model: WanTransformer3DModel, teacher: Teacher) -> None:
        self.model, self.teacher = model, teacher
        self.levels = levels()

    def clean(self, x: Tensor, sigma: Tensor, prompt: Tensor) -> Tensor:
        """Clean latents from x [B, C, T, h, w]."""
        velocity = velocity_of(self.model, x, sigma, self.teacher.tokens[prompt])
        return x - sigma.view(-1, 1, 1, 1, 1) * velocity

    @torch.no_grad()
    def arrivals(self, count: int) -> Start:
        """Run the sampler to any of its levels, the first included."""
        start = self.teacher.noise(count)
        wanted = torch.randint(STEPS, (count,))
        x, sigma = start.x, start.sigma
        for k in range(1, STEPS):
            rows = (wanted >= k).nonzero().flatten()
            if not len(rows):
                break
            level = self.levels[k]
            ends = self.clean(x[rows], sigma[rows], start.prompt[rows])
            x[rows] = (1 - level) * ends + level * torch.randn_like(ends)
            sigma[rows] = level
        return Start(x, sigma, start.prompt)


class Lessons:
    """Points of the teacher's trajectories with their ends, from where the sampler arrives."""

    def __init__(self, teacher: Teacher, sampler: Student, count: int) -> None:
        # Coarser than for guidance: the ends are wanted, and many of them.
        self.trajectories = Trajectories(
            teacher.velocity, sampler.arrivals, count, shift=SHIFT, fewest=10, most=20
        )
        self.starts, self.all = Pool(STARTS), Pool(ALL)
        while sum(map(len, self.starts.kept)) < count:
            self.go_on()

    def go_on(self) -> None:
        """Take one step of every trajectory, and keep what has ended."""
        for whole in self.trajectories.step()[1]:
            self.starts.add(whole[:1])
            self.all.add(whole)

    def draw(self, count: int) -> Points:
        """Draw points, half of them first ones."""
        return Points.joined([self.starts.draw(count // 2), self.all.draw(count - count // 2)])


def load(folder: str) -> WanTransformer3DModel:
    """Read a transformer for training under autocast."""
    model = WanTransformer3DModel.from_pretrained(folder, dtype=torch.float32).requires_grad_(False)
    keep_residual_stream(model)
    return model


def guidance_loss(
    model: WanTransformer3DModel, teacher: Teacher, batch: int
) -> Callable[[int], Loss]:
    """Mean squared error to the guided velocity, along trajectories that go on step by step."""
    trajectories = Trajectories(teacher.velocity, teacher.noise, batch, shift=SHIFT)

    def loss_of(_step: int) -> Tensor:
        points, _ = trajectories.step()
        tokens = teacher.tokens[points.prompt]
        return F.mse_loss(velocity_of(model, points.x, points.sigma, tokens), points.target)

    return loss_of


def consistency_loss(student: Student, averaged: Student, batch: int) -> Callable[[int], Loss]:
    """Pseudo-Huber distance of jumps to the ends of the trajectories that lead on from there."""
    lessons = Lessons(student.teacher, averaged, batch)

    def loss_of(_step: int) -> Tensor:
        lessons.go_on()
        points = lessons.draw(batch)
        return pseudo_huber(student.clean(points.x, points.sigma, points.prompt), points.target)

    return loss_of


def train(args: argparse.Namespace) -> None:
    """Run or resume the distillation; the averaged weights are written every few minutes."""
    begin(args)
    teacher = Teacher(load(str(args.folder / "transformer")), args.guidance)
    consistency = args.kind == "consistency"
    first = args.folder / f"transformer-{SUFFIX['guidance']}" if consistency else None
    if first is not None and not first.is_dir():
        raise SystemExit(f"no {first}: distil the guidance first (`… wan_distill guidance`)")
    model, averaged = copies(load(str(first)) if first else teacher.model)
    loss_of = (
        consistency_loss(Student(model, teacher), Student(averaged, teacher), args.batch)
        if consistency
        else guidance_loss(model, teacher, args.batch)
    )
    distil(
        model,
        loss_of,
        args,
        name="wan",
        part="transformer",
        target=averaged if consistency else None,
        scheduler=scheduler() if consistency else None,
    )


def main() -> None:
    """Parse options and distil."""
    train(
        distillation_parser(
            __doc__, TINY / "wan-emoji", guidance=3.0, batch=24, ema=0.98
        ).parse_args()
    )


if __name__ == "__main__":
    main()
