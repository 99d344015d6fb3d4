"""A way past Dynamo's guards for skipped steps: a forecast reads slots, nothing of the model.

Before a compiled call Dynamo checks every attribute of every submodule and gathers every weight.
For a computed step that is little; for a forecast it is most of the cost. So ditcache stands in
front of the model's `forward`. Of each call that went the guarded way it remembers what the call
looked like. Another one like it, of a model in which nothing was replaced, at a step that the plan
skips, is answered from the slots. Everything else goes the guarded way. What a shortcut does not
see are Python globals and class attributes changed within a generation: those are noticed at its
next computed step.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from . import dynamo, op_by_op
from .executor import Call, StepExecutor, observer
from .model_state import ModelState

MAX_KNOWN = 8  # kinds of calls: guidance branches with their own text lengths
MAX_FORGOTTEN = 16  # a model that keeps on changing itself is left to the guards


class _Unknown(Exception):
    """A call whose inputs or results a shortcut does not describe."""


@dataclass(frozen=True)
class Known:
    """A call that went the guarded way: who ran it, and where its inputs and results come from."""

    executor: weakref.ref[StepExecutor]  # Dynamo holds it, for as long as its code can be called
    world: dynamo.GlobalStateGuard  # grad mode, autocast, threads, determinism
    sources: tuple[tuple[int, int], ...]  # graph inputs that are read, and which tensor of the call
    numbers: tuple[Any, ...]  # for each graph input its value where it is read and no tensor
    result: int | tuple[int, ...]  # which of the graph's outputs forward gives

    def inputs(self, tensors: Sequence[Tensor]) -> list[Any]:
        """The graph's inputs, as far as the executor watches them."""
        values = list(self.numbers)
        for i, source in self.sources:
            values[i] = tensors[source]
        return values

    def results(self, outputs: Any) -> Any:
        """What forward gives when the graph gives `outputs`."""
        flat = _tensors(outputs)
        return (
            flat[self.result]
            if isinstance(self.result, int)
            else tuple(flat[i] for i in self.result)
        )


class Shortcut:
    """Stands in front of a model's `forward` while Dynamo runs it; `install` puts it there.

    Outside of Dynamo, or traced as part of something larger, it is `forward` itself. A copy or a
    pickle of the model gets the plain `forward`.
    """

    __slots__ = (
        "__signature__",
        "__weakref__",
        "_forgotten",
        "_forward",
        "_guarded",
        "_known",
        "_model",
        "_state",
    )

    def __init__(self, model: nn.Module) -> None:
        self._model = weakref.ref(model)
        self._forward: Callable[..., Any] = type(model).forward
        self._known: dict[Hashable, Known] = {}
        self._guarded: dict[int, weakref.ref[Any]] = {}  # compiled with shortcut=False, by id
        self._state: ModelState | None = None
        self._forgotten = 0  # how often in a row the model was found changed
        self.__signature__ = inspect.signature(model.forward)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's `forward` gives."""
        model = self._model()
        if torch.compiler.is_compiling():
            return self._forward(model, *args, **kwargs)
        callback = dynamo.get_eval_frame_callback()
        if not callable(callback):  # not compiled, or to be run without compiling anything
            return self._forward(model, *args, **kwargs)
        if op_by_op.can_watch():
            with op_by_op.watching():
                return self._forward(model, *args, **kwargs)
        guarded = self._guarded.get(id(callback))
        if guarded is not None and guarded() is callback:
            return self._forward(model, *args, **kwargs)
        answer, key, tensors = self._recall(callback, args, kwargs)
        if answer is not None:
            return answer
        if key is None:
            return self._forward(model, *args, **kwargs)
        calls: list[Call] = []
        token = observer.set(calls)
        try:
            result = self._forward(model, *args, **kwargs)
        finally:
            observer.reset(token)
        self._learn(callback, key, tensors, calls, result)
        return result

    @dynamo.outside
    def _recall(
        self, callback: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Hashable | None, list[Tensor]]:
        """The answer, if this call is a skipped step; else what to learn it by, None if nothing."""
        tensors: list[Tensor] = []
        model = self._model()
        if model is None or self._forgotten > MAX_FORGOTTEN or dynamo.modes_active():
            return None, None, tensors
        try:
            described = (_describe(args, tensors), _describe(kwargs, tensors))
        except _Unknown:
            return None, None, tensors
        key = (callback, torch.is_inference_mode_enabled(), described)
        known = self._known.get(key)
        executor = None if known is None else known.executor()
        if known is not None and executor is not None and known.world.check():
            outputs = executor.forecast(known.inputs(tensors), self._unchanged)
            if outputs is not None:
                self._forgotten = 0
                dynamo.count_compiled_frame()
                return known.results(outputs), key, tensors
        if self._state is None:  # before the call: what the call itself changes must show
            try:
                self._state = ModelState(model)
            except ValueError:
                self._forgotten = MAX_FORGOTTEN + 1
        return None, key, tensors

    @dynamo.outside
    def _learn(
        self,
        callback: object,
        key: Hashable,
        tensors: Sequence[Tensor],
        calls: Sequence[Call],
        result: Any,
    ) -> None:
        """Remember how a call went that took the guarded way."""
        if any(not call.executor.config.shortcut for call in calls):
            self._guarded[id(callback)] = weakref.ref(callback)
            return
        known = self._known.get(key)
        if known is not None and len(calls) == 1 and known.executor() is calls[0].executor:
            return
        self._known.pop(key, None)
        if len(calls) != 1 or not calls[0].executor.pure or not self._unchanged():
            return
        try:
            made = _known(calls[0], tensors, result)
        except _Unknown:
            return
        if len(self._known) >= MAX_KNOWN:
            self._known.pop(next(iter(self._known)), None)
        self._known[key] = made

    def _unchanged(self) -> bool:
        """Whether the model is what it was; if not, all that was learned of it is forgotten."""
        state = self._state
        if state is not None and state.unchanged():
            return True
        self._known, self._state = {}, None
        self._forgotten += 1
        return False

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        model = self._model()
        return MethodType(self._forward, memo.get(id(model), model))

    def __reduce__(self) -> Any:
        return getattr, (self._model(), "forward")


dynamo.skip_code(Shortcut.__call__.__code__)


def install(model: nn.Module) -> None:
    """Put a shortcut in front of the model's `forward`, unless something else stands there."""
    if "forward" not in vars(model):
        object.__setattr__(model, "forward", Shortcut(model))


def uninstall(model: nn.Module) -> None:
    """Take the shortcut away, compiled model or not; does nothing where there is none."""
    model = getattr(model, "_orig_mod", model)
    if isinstance(vars(model).get("forward"), Shortcut):
        object.__delattr__(model, "forward")


def _known(call: Call, tensors: Sequence[Tensor], result: Any) -> Known:
    """What a call looked like; raises _Unknown if its parts cannot be told from its inputs."""
    place = {id(t): i for i, t in reversed(list(enumerate(tensors)))}
    sources: list[tuple[int, int]] = []
    numbers: list[Any] = [None] * len(call.inputs)
    for i, value in enumerate(call.inputs):
        if i not in call.executor.watched:
            continue
        if not isinstance(value, Tensor):
            numbers[i] = value
        elif id(value) in place:
            sources.append((i, place[id(value)]))
        else:
            raise _Unknown
    given = {id(t): i for i, t in enumerate(_tensors(call.outputs))}
    parts = (result,) if isinstance(result, Tensor) else result
    if type(parts) is not tuple or any(id(p) not in given for p in parts):
        raise _Unknown
    picked = tuple(given[id(p)] for p in parts)
    return Known(
        weakref.ref(call.executor),
        dynamo.GlobalStateGuard(),
        tuple(sources),
        tuple(numbers),
        picked[0] if isinstance(result, Tensor) else picked,
    )


def _describe(value: Any, tensors: list[Tensor]) -> Hashable:
    """Everything about an input but the contents of its tensors, which are added to the list."""
    kind = type(value)
    if kind is Tensor:
        for i, other in enumerate(tensors):
            if other is value:
                return i
        tensors.append(value)
        flags = value.requires_grad, value.is_inference(), value.is_conj(), value.is_neg()
        return value.shape, value.stride(), value.dtype, value.device, flags
    if kind in _NUMBERS:
        return kind, value
    if kind in (tuple, list):
        return kind, tuple([_describe(v, tensors) for v in value])
    if kind is dict:
        return kind, tuple([(k, _describe(v, tensors)) for k, v in value.items()])
    raise _Unknown


_NUMBERS = frozenset((type(None), bool, int, float, str, torch.dtype, torch.device))


def _tensors(value: Any) -> list[Any]:
    """The leaves of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return [leaf for v in value for leaf in _tensors(v)]
    return [value]
