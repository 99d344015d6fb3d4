"""The entry point: what `torch.compile(model, backend="ditcache")` calls for each traced graph.

Read on from here: `passes/pipeline.py` (what happens to the graph), `runtime/executor.py` (what
happens at each call), `runtime/lower.py` (how a variant becomes code), `kernels/forecast.py`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.exc import RestartAnalysis
from torch._dynamo.output_graph import GraphCompileReason
from torch._dynamo.resume_execution import TORCH_DYNAMO_RESUME_IN_PREFIX

from ..passes.base import PassError
from ..passes.ir import InputKind, StepGraph, kind_of, placeholders, value_of
from ..passes.plan_format import PlanError
from . import config as configuration
from . import dynamo, pipelines, shortcut
from .config import Config, OptionError
from .per_model import PerModel
from .programs import analyse
from .session import Session, registry
from .stats import log

Compiled = Callable[..., Any]

_CUT = "a graph break cuts the step in two"
_TORCH = os.path.dirname(torch.__file__)
_RUNTIME = os.path.dirname(__file__)
_DYNAMO = os.path.join(_TORCH, "_dynamo")
_EVAL_FRAME = os.path.join(_DYNAMO, "eval_frame.py")
_MODULE_CALLS = frozenset({"forward", "_call_impl", "_wrapped_call_impl"})
_hooks: set[str] = set()  # what diffusers' hooks were refused for, so far
_breaks: dict[tuple[str, str], str] = {}  # reasons of graph breaks by file and function_at_line


def ditcache(
    gm: fx.GraphModule,
    example_inputs: list[Any],
    *,
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Compiled:
    """Compile one denoising step.

    `gm` is Dynamo's graph with parameters lifted to inputs, `example_inputs` its inputs (fake or
    real), `options` as `runtime.config.Config` documents. Gives a callable on the graph's inputs.
    Raises OptionError, PlanError for bad options. A graph that cannot be cached is compiled and
    run uncached; `ditcache.summary` says why.
    """
    pipelines.install()
    config = configuration.parse({**(options or {}), **more})
    state = _module_state(gm, example_inputs)
    session = registry.find(state)
    if session is None:
        session = Session(config)
    session.configure(config, by=dynamo.compilation())
    registry.register(state, session)
    reason = _refusal(gm)
    if reason is None:
        try:
            with _uncollected():
                return _cached(gm, example_inputs, session, config)
        except PassError as refused:
            reason = str(refused)
        except (PlanError, OptionError, RestartAnalysis):
            raise  # the last: Dynamo traces again, with a number as a constant that was none
        except Exception as broken:  # whatever we fail at, the model itself can run
            reason = f"internal error, please report: {type(broken).__name__}: {broken}"
            log.debug("while compiling", exc_info=True)
    if reason not in session.uncached:
        session.uncached.append(reason)
    # Hooks cut a model into many small graphs, each with weights, and so a session, of its own.
    if not reason.startswith(pipelines.HOOKED) or reason not in _hooks:
        session.stats.say(reason, f"not caching: {reason}")
    _hooks.add(reason)
    return _uncached(gm, example_inputs, config.inner)


def _module_state(gm: fx.GraphModule, example_inputs: list[Any]) -> list[Tensor]:
    """What tells the model: its parameters, or of a model without any its buffers."""
    parameters: list[Tensor] = []
    buffers: list[Tensor] = []
    for node, value in zip(placeholders(gm.graph), example_inputs, strict=True):
        if isinstance(value, torch.nn.Parameter):
            parameters.append(value)
        elif isinstance(value, Tensor) and "_dynamo_static_input_type" in (
            node.meta.get("tensor_dict") or {}
        ):
            buffers.append(value)
    return parameters or buffers


def _refusal(gm: fx.GraphModule) -> str | None:
    """Why this graph must not be cached, before looking into it."""
    if torch.is_grad_enabled() and any(
        isinstance(v, Tensor) and v.requires_grad
        for v in (value_of(n) for n in placeholders(gm.graph))
    ):
        return "gradients are on; wrap inference in torch.no_grad()"
    ended: GraphCompileReason | None = getattr(gm, "compile_subgraph_reason", None)
    frames = list(ended.user_stack) if ended is not None else []
    around = _around()
    places = [str(node.meta.get("stack_trace", "")) for node in gm.graph.nodes]
    hooked = pipelines.hooked("\n".join([*places, *(f.filename for f in frames), *around]))
    # By the model where that is at hand: in a graph beside the hooks nothing tells of them.
    hooked = next(filter(None, map(pipelines.own_cache, _models())), hooked)
    if hooked is not None:
        _breaks.update({(f.filename, f"{f.name}_at_{f.lineno}"): hooked for f in frames})
    reason = hooked or _broken(ended)
    if reason is None and around:
        return f"{_CUT}: this graph is a part of what {around[0]} runs"
    return reason


def _around() -> list[str]:
    """Files and names of the functions of the compiled model that this graph is called from.

    Empty if the graph is the model's own forward. Where Dynamo could not trace that in one piece,
    it compiles what the forward calls function by function, and a time embedding by itself looks
    much like a denoiser.
    """
    found: list[str] = []
    inside = False
    for frame in _callers():
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file == _EVAL_FRAME and name == "compile_wrapper":
            return found
        inside = inside or file.startswith(_DYNAMO)
        if inside and not file.startswith((_TORCH, _RUNTIME)):
            found.append(f"{file}:{name}")
    return []


def _models() -> Generator[object]:
    """The module that Dynamo traces now, and those in whose methods it was called."""
    yield dynamo.traced_module()
    for frame in _callers():
        # Looking keeps the locals until the frame ends (before Python 3.13): not a caller's models.
        code = frame.f_code
        if code.co_varnames[:1] == ("self",) and code.co_name in _MODULE_CALLS:
            yield frame.f_locals.get("self")


def _callers() -> Generator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back


def _broken(ended: GraphCompileReason | None) -> str | None:
    """Which graph break the graph stands before or after; None for a step in one piece."""
    if ended is None:
        return None
    if ended.graph_break:
        reason = ended.reason.splitlines()[0]
        for frame in ended.user_stack:
            _breaks[frame.filename, f"{frame.name}_at_{frame.lineno}"] = reason
        return f"{_CUT}: {reason}"
    for frame in ended.user_stack:  # what follows a break is a function of its own to Dynamo
        if frame.name.startswith(TORCH_DYNAMO_RESUME_IN_PREFIX):
            at = frame.name.removeprefix(TORCH_DYNAMO_RESUME_IN_PREFIX).lstrip("_")
            why = _breaks.get((frame.filename, at), "TORCH_LOGS=graph_breaks tells its reason")
            if why.startswith(pipelines.HOOKED):
                return why
            return (
                f"{_CUT}: {why} ({frame.filename}, {at}). If only the first call breaks, as where "
                "tables are made lazily, call the model once before compiling it."
            )
    return None


def _cached(
    gm: fx.GraphModule, example_inputs: list[Any], session: Session, config: Config
) -> Compiled:
    graph = analyse(StepGraph(name="step", module=gm), config)
    kinds = {kind_of(n) for n in placeholders(graph.graph)}
    if InputKind.LATENTS not in kinds or not graph.regions:
        raise PassError("no output depends on a latents input: this graph is no denoising step")
    if (refusal := graph.region("denoiser").refusal) is not None:
        raise PassError(f"the denoiser's output cannot be cached: {refusal}")
    model = dynamo.traced_module() if config.shortcut else None
    if model is not None:
        shortcut.install(model)
    pure = config.shortcut and dynamo.without_side_effects()
    whole = None
    if config.policy == "none" and not config.cuda_graphs:
        # After the analysis, which reads the graph: the inner compiler may change it.
        whole = _uncached(gm, example_inputs, config.inner)
    return PerModel(graph, session, config, example_inputs, pure=pure, whole=whole)


@contextmanager
def _uncollected() -> Generator[None]:
    """Without Python's cycle collector while inside.

    Passes and the inner compiler make hundreds of thousands of objects that stay alive for as long
    as they work; looking through them again and again is a tenth of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _uncached(gm: fx.GraphModule, example_inputs: list[Any], inner: str) -> Compiled:
    if inner == "eager":
        return gm.forward
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(inner)(gm, example_inputs)
