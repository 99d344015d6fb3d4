"""The private parts of Dynamo that ditcache uses, in one place: where torch versions may differ."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import CodeType
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import nn
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]
from torch._C._dynamo import eval_frame
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._C._dynamo.guards import (
    GlobalStateGuard,
    dict_version,
    set_is_in_mode_without_ignore_compile_internals,
)
from torch._dynamo.convert_frame import compile_lock
from torch._dynamo.eval_frame import skip_code
from torch.utils import _python_dispatch

P = ParamSpec("P")
R = TypeVar("R")

__all__ = [
    "GlobalStateGuard",
    "beside_dispatch_modes",
    "compilation",
    "compile_lock",
    "count_compiled_frame",
    "dict_version",
    "dispatch_mode_in_the_way",
    "get_eval_frame_callback",
    "modes_active",
    "outside",
    "skip_code",
    "traced_module",
    "without_side_effects",
]

# torch 2.11 does not count; later ones fail a fullgraph=True call that ran no compiled frame.
_set_count = cast(
    "Callable[[int], int] | None",
    getattr(eval_frame, "set_fullgraph_compiled_frame_count", None),
)


def outside(function: Callable[P, R]) -> Callable[P, R]:
    """A function that Dynamo neither traces nor sees the inside of."""
    return cast("Callable[P, R]", torch.compiler.disable(function))


def traced_module() -> nn.Module | None:
    """The module whose class's `forward` Dynamo traces right now; None if it traces another frame.

    So for `torch.compile(module)`. Of `module.compile()` Dynamo traces the call with its hooks.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        root: Any = InstructionTranslator.current_tx().output.root_tx
        code: CodeType = root.f_code
        module = root.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
    except (AttributeError, RuntimeError):
        return None  # called by hand, not by Dynamo
    forward = getattr(type(module), "forward", None)
    if not isinstance(module, nn.Module) or getattr(forward, "__code__", None) is not code:
        return None
    return module


def compilation() -> object | None:
    """What stands for the call of `torch.compile` that Dynamo works for; None outside of Dynamo.

    The same object at every recompilation.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        return cast(Any, InstructionTranslator.current_tx()).output.compiler_fn
    except (AttributeError, RuntimeError):
        return None


def without_side_effects() -> bool:
    """Whether the frame that Dynamo traces right now does nothing but to run its graph.

    What it writes into its own objects does not count, nor into the dict of its `**kwargs`, which
    Python makes for it.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator
    from torch._dynamo.variables.base import AttributeMutationNew, ValueMutationNew

    try:
        output: Any = InstructionTranslator.current_tx().output
        effects, code = output.side_effects, output.root_tx.f_code
        own = _keywords(code)
        touched = [
            v
            for v in effects.id_to_variable.values()
            if not isinstance(v.mutation_type, (AttributeMutationNew, ValueMutationNew))
            and (own is None or getattr(v.source, "local_name", None) != own)
        ]
        return not (effects.tensor_hooks or any(map(effects.is_modified, touched)))
    except (AttributeError, RuntimeError):
        return False


def _keywords(code: CodeType) -> str | None:
    """The name of a function's `**kwargs`, if it has them."""
    if not code.co_flags & inspect.CO_VARKEYWORDS:
        return None
    positional = code.co_argcount + code.co_kwonlyargcount
    return code.co_varnames[positional + bool(code.co_flags & inspect.CO_VARARGS)]


def count_compiled_frame() -> None:
    """Let a call of a `fullgraph=True` model pass for compiled although no frame of it ran."""
    if _set_count is not None:
        before = _set_count(-1)
        _set_count(before + 1 if before >= 0 else before)


def modes_active() -> bool:
    """Whether a torch function or dispatch mode sees what runs now: a FLOP counter, vmap."""
    return bool(
        torch._C._len_torch_function_stack()
        or torch._C._len_torch_dispatch_stack()
        or _functorch.maybe_current_level() is not None
    )


def dispatch_mode_in_the_way() -> bool:
    """Whether a dispatch mode is active under which Dynamo runs no compiled code: a FLOP counter.

    Dynamo does not only step aside under it: it leaves the frame alone for good, also later.
    """
    return _python_dispatch.is_in_any_mode_without_ignore_compile_internals()


@contextmanager
def beside_dispatch_modes() -> Generator[None]:
    """Let Dynamo run compiled code under the dispatch modes that are active; they see its ops."""
    before = dispatch_mode_in_the_way()
    _set_in_the_way(False)
    try:
        yield
    finally:
        _set_in_the_way(before)


def _set_in_the_way(value: bool) -> None:
    _python_dispatch._is_in_any_mode_without_ignore_compile_internals = value
    set_is_in_mode_without_ignore_compile_internals(value)
