"""Which weights a model has, told apart from one generation to the next.

Adapters are loaded, merged and scaled while the compiled model stays what it is. Merging writes
through `.data`, which counts no version, so a few entries of each weight are read, once in a
generation; a scale is a number in the graph.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from torch import fx

from ..passes.ir import InputKind, kind_of, placeholders
from ..passes.names import source_name
from ..passes.signature import weight_fingerprint

OTHER_WEIGHTS = (
    "but the weights are not those that the plan was made for (an adapter, perhaps): its predicted "
    "error is that of the old ones. If the images suffer, make a new one with ditcache.calibrate."
)


class WeightMark:
    """Names the weights of one compiled graph: those among its inputs, and the numbers in it.

    Graphs of one model for several shapes have its weights under equal names, so the same mark.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._numbers = _numbers(graph)
        named = [
            (source_name(node), i)
            for i, node in enumerate(placeholders(graph))
            if kind_of(node) is InputKind.PARAMETER
        ]
        self._weights = [i for _, i in sorted(named)]

    def of(self, args: Sequence[object]) -> str:
        """The name for the weights among the graph's inputs. Waits for the device once."""
        return f"{weight_fingerprint([args[i] for i in self._weights])}-{self._numbers}"


def _numbers(graph: fx.Graph) -> str:
    """8 hex digits of the fractional arguments of the graph's ops, in any order."""
    found: list[str] = []
    for node in graph.nodes:
        for value in _flat((node.args, node.kwargs)):
            if isinstance(value, float):
                found.append(repr(value))
    return hashlib.sha256(" ".join(sorted(found)).encode()).hexdigest()[:8]


def _flat(value: object) -> Iterable[object]:
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif isinstance(value, dict):
        yield from _flat(list(value.values()))
    else:
        yield value
