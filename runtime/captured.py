"""A variant captured once for each kind of inputs and replayed after that.

The dispatcher decides which variant runs; a `Captured` obeys.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..kernels.formats import Packed
from ..passes.signature import plain_tensors
from .capture import Capture, Input, Inputs, InputUse
from .cuda_graphs import MOST_GRAPHS, Graphs
from .offload import Offloaded

Run = Callable[..., Any]

DEVICES = frozenset({"cuda"})
"""Devices whose work can be captured."""
LEAST_REPLAYS = 2
"""Replays for each capture, on average, below which capturing does not pay."""
TRIED = 8
"""Captures of one variant after which its replays are counted."""


class Captured:
    """A callable like `run`, captured for each kind of inputs at its second call with them.

    At the first call it runs as it is: kernels are tuned and libraries load there. `uses` says of
    each input how the graph gets it, `name` names the variant in messages. What it gives belongs to
    the caller: the next replay does not touch it. Where a capture fails, or is not worth it, `run`
    is called from then on, and the reason is counted and said once.
    """

    def __init__(self, run: Run, uses: Sequence[InputUse], name: str, graphs: Graphs) -> None:
        self.run = run
        self.uses = tuple(uses)
        self._name = name
        self._graphs = graphs
        self._weights = [i for i, use in enumerate(uses) if use is InputUse.WEIGHT]
        self._others = [i for i, use in enumerate(uses) if use is not InputUse.WEIGHT]
        self._warm: dict[Hashable, Inputs] = {}  # what the first call of a kind leaves to a capture
        self._captures = 0
        self._replays = 0
        self._given_up = False

    def __call__(self, *args: Any) -> Any:
        """What `run` gives for these inputs."""
        if self._given_up:
            return self.run(*args)
        graphs = self._graphs
        with graphs.lock:
            place = self._place(args)
            if place is None:
                return self.run(*args)
            device, key = place
            capture = graphs.find(self, key, device)
            if capture is not None and capture.weights != self.addresses(args):
                graphs.drop(self, key, device)  # weights were moved or replaced
                graphs.stats.recaptures += 1
                capture = None
            if capture is None:
                if key not in self._warm:
                    return self._rehearse(key, device, args)
                capture = self._capture(key, device, args)
                if capture is None:
                    return self.run(*args)
            self._replays += 1
            return graphs.replay(self, key, capture, args)

    def addresses(self, args: Sequence[Any]) -> tuple[int, ...]:
        """Where the weights among the inputs lie."""
        found: list[int] = []
        for i in self._weights:
            value = args[i]
            if type(value) in (Tensor, torch.nn.Parameter):
                found.append(value.data_ptr())
            elif isinstance(value, Tensor):  # quantised: a wrapper around plain tensors
                found.extend(part.data_ptr() for part in plain_tensors(value))
        return tuple(found)

    def inputs(self, args: Sequence[Any]) -> Inputs:
        """Buffers for the inputs that a capture reads from a place of its own, not filled yet."""
        copied = (InputUse.KEPT, InputUse.VALUE)
        return {
            i: Input.like(v)
            for i, v in enumerate(args)
            if isinstance(v, Tensor) and self.uses[i] in copied
        }

    def _rehearse(self, key: Hashable, device: torch.device, args: Sequence[Any]) -> Any:
        try:
            made, self._warm[key] = self._graphs.rehearse(self, device, args)
        except torch.OutOfMemoryError:
            self.give_up("no memory for a CUDA graph", "")
            return self.run(*args)
        return made

    def _capture(self, key: Hashable, device: torch.device, args: Sequence[Any]) -> Capture | None:
        if self._captures >= TRIED and self._replays < LEAST_REPLAYS * self._captures:
            return self.give_up(
                "inputs that keep changing",
                f"{self._captures} captures were replayed {self._replays} times in all: weights "
                "keep moving, or a number among the inputs is another one at each step.",
            )
        weights = (args[i] for i in self._weights)
        strange = {w.device for w in weights if isinstance(w, Tensor)} - {device}
        if strange:
            return self.give_up("weights on another device", f"{strange.pop()}, not {device}.")
        self._captures += 1
        try:
            inputs, self._warm[key] = self._warm[key], {}
            return self._graphs.add(self, key, device, args, inputs)
        except torch.OutOfMemoryError:
            return self.give_up("no memory for a CUDA graph", "")
        except Exception as failed:  # whatever fails at a capture, the variant itself can run
            where = " ".join(getattr(failed, "__notes__", ()))
            text = f"{type(failed).__name__}: {failed}".splitlines()[0]
            return self.give_up("a capture failed", f"{text}. {where}")

    def give_up(self, reason: str, detail: str) -> None:
        """Capture nothing any more; counted, and said with its reason."""
        self._given_up = True
        stats = self._graphs.stats
        stats.uncaptured[reason] += 1
        stats.say(f"graph {reason}", f"{self._name} runs without CUDA graphs: {reason}. {detail}")

    def _place(self, args: Sequence[Any]) -> tuple[torch.device, Hashable] | None:
        """The device and what a capture depends on; None where inputs cannot be captured."""
        parts: list[Hashable] = []
        device: torch.device | None = None
        for i in self._others:
            value = args[i]
            if isinstance(value, Packed):
                parts.append(
                    tuple(t.data_ptr() for t in (value.data, value.scales) if t is not None)
                )
                value = value.data
            if isinstance(value, Offloaded):
                return self.give_up("a slot on the host", "It is fetched at each step.")
            if not isinstance(value, Tensor):
                parts.append((type(value), value))
                continue
            if type(value) is not Tensor and type(value) is not torch.nn.Parameter:
                return self.give_up("an input of a tensor subclass", type(value).__name__)
            if value.device.type not in DEVICES:
                return self.give_up("an input on another device", f"Input {i}: {value.device}.")
            if device is not None and value.device != device:
                return self.give_up("inputs on two devices", f"{device} and {value.device}.")
            device = value.device
            slot = value.data_ptr() if self.uses[i] is InputUse.SLOT else 0
            parts.append((value.shape, value.stride(), value.dtype, slot))
        if device is None:
            return self.give_up("no input on a device", "")
        if len(self._warm) > 2 * MOST_GRAPHS:
            self._warm.clear()
        # A buffer that was made in inference mode cannot be written outside of it.
        return device, (device, torch.is_inference_mode_enabled(), *parts)
