"""One compiled graph, one executor for each model that runs through it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..passes.ir import StepGraph
from ..passes.signature import model_signature
from .config import Config
from .executor import Compiled, StepExecutor
from .session import Session, registry


class PerModel:
    """What Dynamo calls: finds the model by its weights and runs that model's executor.

    Dynamo compiles a class's forward once and lifts the parameters to inputs, so a second model of
    the same architecture runs through the first one's code. Its generations, plans and figures are
    its own all the same. `config` are the options of this compilation, `inputs` the graph's example
    inputs, with the first model's weights, `whole` the graph compiled in one piece, where that is
    to run while there is nothing to cache.
    """

    def __init__(
        self,
        graph: StepGraph,
        session: Session,
        config: Config,
        inputs: Sequence[Any],
        *,
        pure: bool,
        whole: Compiled | None = None,
    ) -> None:
        self._graph = graph
        self._config = config
        self._pure = pure
        self._whole = whole
        self._signature = model_signature(graph)
        self._weights = [i for i, v in enumerate(inputs) if isinstance(v, torch.nn.Parameter)]
        self._known: dict[int, tuple[weakref.ref[Tensor], StepExecutor]] = {}
        self._first = self._executor(session, inputs)

    def __call__(self, *args: Any) -> Any:
        """Run the step with the executor of the model that these weights belong to."""
        if not self._weights:
            return self._first(*args)
        weight = args[self._weights[0]]
        known = self._known.get(id(weight))
        if known is not None and known[0]() is weight:
            return known[1](*args)
        return self._adopt(args)(*args)

    def _adopt(self, args: Sequence[Any]) -> StepExecutor:
        """The executor of a model that runs through this graph for the first time."""
        weights = [args[i] for i in self._weights]
        session = registry.find(weights)
        if session is None:
            session = Session(self._config)
        else:
            for executor in session.executors:  # the same model with its first weight replaced
                if executor.graph is self._graph:
                    self._remember(args, executor)
                    return executor
            session.configure(self._config)
        registry.register(weights, session)
        return self._executor(session, args)

    def _executor(self, session: Session, args: Sequence[Any]) -> StepExecutor:
        made = StepExecutor(
            self._graph, session, config=self._config, pure=self._pure, whole=self._whole
        )
        if self._whole is None:
            # Lowered now, not on the first call: Dynamo counts it as compile time, and guards that
            # the inner compiler adds on symbolic sizes are still heard. It may ask for another
            # trace.
            made.program(None).executable(())
        session.bind(self, made, self._signature, made.weights.of(args))
        self._remember(args, made)
        return made

    def _remember(self, args: Sequence[Any], executor: StepExecutor) -> None:
        if self._weights:
            weight: Tensor = args[self._weights[0]]
            key, known = id(weight), self._known
            known[key] = (weakref.ref(weight, lambda _: known.pop(key, None)), executor)
