"""Looking at a compiled denoiser from outside: which calls computed, and what a plan should give.

`watched` counts matrix products and convolutions with a dispatch mode while a call runs: what
really computed shows there, whatever ditcache's own figures say. `Follow` stands in for the
denoiser and follows a plan by hand in plain eager code.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import ditcache
import torch
from ditcache import Plan
from ditcache.runtime.session import session_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .tiny_pipelines import denoiser, generate, set_denoiser

aten = torch.ops.aten
# In inference mode a dispatch mode sees the composite ops themselves.
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}
PRODUCTS |= {aten.linear, aten.matmul, aten.conv2d}


class Products(TorchDispatchMode):
    """Counts the products that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True  # else Dynamo would not run compiled code under a mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in PRODUCTS
        return func(*args, **(kwargs or {}))


@dataclass
class Calls:
    """Products of each call of the denoiser, in order."""

    products: list[int] = field(default_factory=list[int])

    @property
    def computed(self) -> list[bool]:
        """Whether each call computed: a forecast takes no products at all."""
        return [n > 0 for n in self.products]

    @property
    def total(self) -> int:
        """How many calls computed."""
        return sum(self.computed)


@contextmanager
def watched(model: nn.Module) -> Iterator[Calls]:
    """Count each call of `model` (compiled or not) inside; calls may come from several threads."""
    calls = Calls()
    running: dict[int, Products] = {}

    def before(*_: Any) -> None:
        running[threading.get_ident()] = mode = Products()
        mode.__enter__()

    def after(*_: Any) -> None:
        mode = running.pop(threading.get_ident())
        mode.__exit__(None, None, None)
        calls.products.append(mode.count)

    hooks = [
        model.register_forward_pre_hook(before),
        model.register_forward_hook(after, always_call=True),
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class Follow:
    """Looks like the denoiser to a pipeline; every branch follows the plan in eager code.

    A branch is what has its own conditions, by content. A call computes where the plan says so, or
    where the computed outputs that its row wants are not there.
    """

    def __init__(self, model: Any, plan: Plan) -> None:
        self._model, self._plan, self._schedule = model, plan, plan.regions[0]
        self._kept: dict[Hashable, list[tuple[int, Tensor]]] = {}

    def __call__(self, *args: Any, **inputs: Any) -> Any:
        t = float(torch.as_tensor(inputs["timestep"] if "timestep" in inputs else args[1]).max())
        grid = self._plan.timesteps
        step = min(range(len(grid)), key=lambda i: abs(grid[i] - t))
        computed, row = self._schedule.computed, self._schedule.weights[step]
        kept = self._kept.setdefault(_branch(inputs), [])
        used = max((k + 1 for k, w in enumerate(row) if w), default=0)
        planned = [c for c in computed if c < step][-used:][::-1] if used else []
        if step in computed or [s for s, _ in kept[:used]] != planned:
            output = self._model(*args, **inputs)[0]
            if step in computed:
                kept.insert(0, (step, output))
            return (output,)
        total = sum(w * y.float() for w, (_, y) in zip(row, kept, strict=False) if w)
        return (torch.as_tensor(total).to(kept[0][1].dtype),)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


def _branch(inputs: dict[str, Any]) -> Hashable:
    text: Tensor = inputs["encoder_hidden_states"]
    skipped = str(inputs.get("skip_layers"))
    return (tuple(text.shape), text.double().numpy().tobytes(), skipped)


def same(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def error(ours: Tensor, theirs: Tensor) -> float:
    """Relative distance."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def compiled(pipeline: Any, **options: Any) -> Any:
    """Compile the pipeline's denoiser in place, every bit kept; gives the compiled one."""
    options = {"inner": "eager", "remember": False} | options
    made = torch.compile(denoiser(pipeline), backend="ditcache", options=options)
    set_denoiser(pipeline, made)
    return made


def planned(
    pipeline: Any, speedup: float = 2.0, policy: str = "edf", **how: Any
) -> tuple[Any, Plan]:
    """Compile, record one generation (called with `how`) and run under its plan from now on."""
    made = compiled(pipeline)
    profile = ditcache.calibrate(made, lambda i: generate(pipeline, 50 + i, **how), samples=1)
    plan = profile.plan(speedup=speedup, policy=policy)
    ditcache.apply(made, plan)
    ditcache.reset(made)
    return made, plan


def own_plan(made: Any) -> Plan:
    """The plan that a model made by itself, once the generation under way is over."""
    session = session_of(made)
    assert session is not None
    session.generations.end_all()
    return session.plans[-1]


def by_hand(pipeline: Any, plan: Plan, **how: Any) -> Tensor:
    """The generation that `generate(pipeline, **how)` makes, by an eager loop of the plan."""
    made = denoiser(pipeline)
    set_denoiser(pipeline, Follow(made._orig_mod, plan))
    try:
        return generate(pipeline, **how)
    finally:
        set_denoiser(pipeline, made)


def uncached(pipeline: Any, **how: Any) -> Tensor:
    """The generation that `generate(pipeline, **how)` makes, by the model as it is."""
    made = denoiser(pipeline)
    set_denoiser(pipeline, made._orig_mod)
    try:
        return generate(pipeline, **how)
    finally:
        set_denoiser(pipeline, made)


def steps_of(plan: Plan, branches: int = 1) -> list[bool]:
    """Which calls a plan computes, with so many calls a step."""
    computed = set(plan.regions[0].computed)
    return [step in computed for step in range(len(plan.timesteps)) for _ in range(branches)]


def follows(pipeline: Any, plan: Plan, *, branches: int = 1, **how: Any) -> None:
    """Check that a generation is the plan's: image and computed calls, both seen from outside."""
    with watched(denoiser(pipeline)) as calls:
        ours = generate(pipeline, **how)
    assert calls.computed == steps_of(plan, branches)
    close(ours, by_hand(pipeline, plan, **how))


def in_full(pipeline: Any, calls: int, **how: Any) -> None:
    """Check that a generation computes every call and is bit-equal to the uncached one."""
    with watched(denoiser(pipeline)) as seen:
        ours = generate(pipeline, **how)
    assert seen.computed == [True] * calls
    same(ours, uncached(pipeline, **how))
