"""ditcache-opt's input: an architecture by name, a factory, or an exported program."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from .base import PassError
from .ir import StepGraph
from .trace import trace


class InputError(ValueError):
    """What the user gave cannot be used; the message is one line and says what to do."""


def load(model: str, sizes: Mapping[str, int | None], *, dynamic: bool = False) -> StepGraph:
    """Trace `model` into a step graph of that name.

    `model` is `package.module:factory`, a file `*.pt2`, or a name in the zoo; `sizes` (height,
    width, frames, batch) apply to the zoo alone. Raises InputError.
    """
    given = {k: v for k, v in sizes.items() if v is not None}
    if model.endswith(".pt2"):
        return _exported(model, given)
    if ":" in model:
        return _traced(model, *_factory(model, given), dynamic)
    from ..models import zoo

    try:
        built = zoo.build(model, **{"batch": 1, **given})  # pyright: ignore[reportArgumentType]
    except (ValueError, ImportError) as wrong:
        raise InputError(
            f"{wrong}; or give a factory as package.module:function, or an export as file.pt2"
        ) from wrong
    _own_buffers(built.module)
    return _traced(model, built.module, (), built.kwargs, dynamic)


def reason(error: BaseException) -> str:
    """The first line of an exception with its type, for a message of one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _traced(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: bool
) -> StepGraph:
    try:
        return trace(module, args, kwargs, name=name, dynamic=True if dynamic else None)
    except PassError as refused:
        raise InputError(f"{name}: {refused}") from refused
    except Exception as broken:  # whatever the model's forward raises
        raise InputError(
            f"{name}: the forward call failed while it was traced ({reason(broken)}); check that "
            "the model runs on these inputs"
        ) from broken


def _own_buffers(module: nn.Module) -> None:
    """Give each buffer storage of its own: a view whose base has another type does not trace."""
    for part in module.modules():
        for name, buffer in part.named_buffers(recurse=False):
            if buffer._is_view():
                part._buffers[name] = buffer.detach().clone()


def _no_sizes(model: str, given: Mapping[str, int]) -> None:
    if given:
        options = ", ".join(f"--{k}" for k in given)
        raise InputError(f"{model}: {options} apply to models of the zoo only; leave them out")


def _factory(
    model: str, given: Mapping[str, int]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    _no_sizes(model, given)
    path, _, attribute = model.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        found: Any = importlib.import_module(path)
        for part in attribute.split("."):
            found = getattr(found, part)
    except AttributeError:
        raise InputError(f"{model}: module {path} has no {attribute!r}") from None
    except Exception as broken:  # an import runs the user's code
        raise InputError(f"{model}: importing {path} failed ({reason(broken)})") from broken
    finally:
        sys.path.pop(0)
    try:
        made = found()
    except Exception as broken:
        raise InputError(f"{model}: the factory failed ({reason(broken)})") from broken
    match made:
        case (nn.Module() as module, tuple() as args, dict() as kwargs):
            return module, args, kwargs  # pyright: ignore[reportUnknownVariableType]
        case (nn.Module() as module, dict() as kwargs):
            return module, (), kwargs  # pyright: ignore[reportUnknownVariableType]
        case _:
            got = type(made).__name__
            raise InputError(
                f"{model}: the factory gave a {got}; expected (module, kwargs) or "
                "(module, args_tuple, kwargs)"
            )


@contextmanager
def _quiet(name: str) -> Generator[None]:
    """Without the messages of a logger while inside."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _exported(path: str, given: Mapping[str, int]) -> StepGraph:
    _no_sizes(path, given)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; expected what torch.export.save wrote")
    try:
        # Without decompositions: functional ATen ops in which linear and attention stay whole.
        with _quiet("torch.export"):  # it logs the traceback of what it raises
            program = torch.export.load(path).run_decompositions({})
    except Exception as broken:  # the loader raises many kinds
        raise InputError(
            f"{path}: not an exported program ({reason(broken)}); expected what torch.export.save "
            "wrote with this version of torch"
        ) from broken
    module: fx.GraphModule = program.graph_module
    signature = program.graph_signature
    state = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    if signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
        raise InputError(f"{path}: the program writes to {', '.join(changed)}; a step may not")
    for node in list(module.graph.nodes):
        if node.op == "placeholder" and node.name in state:
            node.meta["source"] = state[node.name]
            # The mark that Dynamo puts on module state.
            node.meta["tensor_dict"] = {"_dynamo_static_input_type": "unguarded"}
        elif not node.users and "assert" in str(node.target):
            module.graph.erase_node(node)  # checks of sizes that the export froze
    return StepGraph(name=path, module=module)
