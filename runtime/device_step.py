"""Steps whose decision the host does not wait for: each is one callable that can be captured.

`DeviceStep` is that of a policy that decides by data, `GuardedStep` that of a static plan which a
generation may leave. Under capture what is decided about becomes a conditional node; otherwise the
host reads the flag and branches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.clock import Dial, Grid, clock
from ..kernels.probe import Verdict, decide
from ..passes.policies import Limit
from . import if_node
from .capture import InputUse
from .cuda_graphs import Captured, Graphs
from .executable import Executable, Inner, Ref
from .late_reads import to_device
from .memo import storages


class DeviceStep:
    """Runs the parts that lower-cond made of a step: head, decision, body under it, tail.

    The body refreshes the slots in place and the tail reads them, whether it ran or not.
    """

    def __init__(
        self,
        head: Executable,
        body: Executable,
        tail: Executable,
        limit: Limit,
        graphs: Graphs | None,
    ) -> None:
        self.head, self.body, self.tail = head, body, tail
        self._accumulate = limit.accumulate
        self._limit = limit.limit
        self._limits: dict[torch.device, Tensor] = {}
        found = _uses(head, body, tail)
        self.inputs = tuple(found)
        uses = (*found.values(), InputUse.KEPT, InputUse.SLOT, InputUse.SLOT)
        self._call = whole(self._run, uses, "a step decided on the device", graphs)

    def __call__(self, values: Sequence[Any], verdict: Verdict) -> tuple[Any, dict[str, Tensor]]:
        """Run the step on the values of `inputs`; gives its outputs and what is to be written.

        `verdict` holds the flag of the decision afterwards, 1 where the body ran.
        """
        device = verdict.flag.device
        if device not in self._limits:
            limit = torch.tensor([self._limit], dtype=torch.float32, device="cpu")
            self._limits[device] = to_device(limit, device)
        outputs, writes = self._call(*values, self._limits[device], verdict.flag, verdict.running)
        return outputs, dict(zip(self.tail.variant.writes, writes, strict=True))

    def _run(self, *values: Any) -> Any:
        *given, limit, flag, running = values
        env = dict(zip(self.inputs, given, strict=True))
        (figures,), kept = _part(self.head, self._call, env)
        names = self.head.variant.carried
        env |= {Ref("carried", name=n): v for n, v in zip(names, kept, strict=True)}
        decide(figures, limit, Verdict(flag, running), accumulate=self._accumulate)

        def made() -> dict[str, Tensor]:
            _, values = _part(self.body, self._call, env)
            return dict(zip(self.body.variant.writes, values, strict=True))

        def take(values: Mapping[str, Tensor]) -> None:
            for slot, value in values.items():
                env[Ref("slot", name=slot)][0].copy_(value)

        branch(flag, made, take, warm=_captured(self._call))
        return _part(self.tail, self._call, env)


class GuardedStep:
    """Runs a step that a static plan skips: forecast, and computed where the plan was left.

    That is where the guard has raised its flag at a computed step, and where the timestep is not
    the one that the plan is at. What the computing variant gives then overwrites the forecast.
    `inner` are the prologues that it alone needs.
    """

    def __init__(
        self,
        skip: Executable,
        full: Executable,
        inner: Sequence[Inner],
        graphs: Graphs | None,
    ) -> None:
        self.skip, self.full, self._inner = skip, full, inner
        self.macs = full.variant.macs + sum(part.macs for part in inner)  # where it computes
        made = {Ref("hoisted", name=n) for part in inner for n in part.outputs}
        uses = _uses(skip, full, *inner)
        found = {ref: use for ref, use in uses.items() if ref not in made}
        self.inputs = tuple(found)
        uses = (*found.values(), InputUse.VALUE, *[InputUse.SLOT] * 5)
        self._call = whole(self._run, uses, "a guarded step", graphs)

    def __call__(
        self, values: Sequence[Any], timestep: Tensor, grid: Grid, dial: Dial, flag: Tensor
    ) -> tuple[Any, Tensor]:
        """Run the step on the values of `inputs`; gives its outputs, and i32[1]: if it computed."""
        at = (timestep, grid.timesteps, grid.within, grid.computes, dial.state, flag)
        return self._call(*values, *at)

    def _run(self, *values: Any) -> Any:
        *given, timestep, times, within, computes, state, flag = values
        env = dict(zip(self.inputs, given, strict=True))
        dial = Dial(state)
        clock(timestep, Grid(times, within, computes), dial)
        outputs, _ = _part(self.skip, self._call, env)
        outputs = unshared(outputs, storages(given))
        left = flag | dial.unknown

        def made() -> Any:
            now = dict(env)
            for part in self._inner:
                values = part.run(*(now[ref] for ref in part.inputs))
                now |= {
                    Ref("hoisted", name=n): v for n, v in zip(part.outputs, values, strict=True)
                }
            return _part(self.full, self._call, now)[0]

        # Nothing to load: at computed steps the variant has run before.
        branch(left, made, lambda full: _overwrite(outputs, full), warm=False)
        return outputs, left


def branch(
    flag: Tensor, made: Callable[[], Any], take: Callable[[Any], None], *, warm: bool
) -> None:
    """Where `flag`, i32[1], is set: `take` what `made` gives.

    Under capture a conditional node. `warm`: a capture follows, so what is made is made in either
    case, in order that every kernel is loaded.
    """
    if flag.is_cuda and torch.cuda.is_current_stream_capturing():
        with if_node.if_node(flag):
            take(made())
        return
    if flag.is_cuda and if_node.missing() is None:
        if_node.prepare(flag.device)
    warm = warm and flag.is_cuda
    values = made() if warm else None
    if flag.item():
        take(values if warm else made())


def whole(
    run: Callable[..., Any], uses: Sequence[InputUse], name: str, graphs: Graphs | None
) -> Callable[..., Any]:
    """`run`, to be captured as a whole where there are captures and conditional nodes."""
    if graphs is None:
        return run
    if (why := if_node.missing()) is not None:
        graphs.stats.say("if node", why)
        return run
    return Captured(run, uses, name, graphs)


def unshared(value: Any, kept: set[int]) -> Any:
    """A result without storage that others keep: whoever gets it may write into it."""
    if isinstance(value, Tensor):
        return value.clone() if storages([value]) & kept else value
    if isinstance(value, (tuple, list)):
        return type(value)(unshared(v, kept) for v in value)
    return value


def _captured(call: Callable[..., Any]) -> bool:
    return isinstance(call, Captured) and not call.given_up


def _part(part: Executable, call: Callable[..., Any], env: Mapping[Ref, Any]) -> Any:
    """Run a part of a step: inside the step's capture, or in one of its own."""
    run = part.plain if isinstance(call, Captured) else part.run
    return run(*(env[ref] for ref in part.inputs))


def _uses(*parts: Executable | Inner) -> dict[Ref, InputUse]:
    """The inputs of several parts, but for what one carries over to the next."""
    return {
        ref: use
        for part in parts
        for ref, use in zip(part.inputs, part.uses, strict=True)
        if ref.source != "carried"
    }


def _overwrite(outputs: Any, values: Any) -> None:
    if isinstance(outputs, Tensor):
        outputs.copy_(values)
    elif isinstance(outputs, (tuple, list)):
        for mine, value in zip(outputs, values, strict=True):
            _overwrite(mine, value)
