"""What a model was when seen: tells, without Dynamo's guards, whether a part was replaced."""

from __future__ import annotations

from collections.abc import Iterator
from operator import is_
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

from torch import Tensor, nn

from .dynamo import dict_version

MAX_OBJECTS = 100_000
# Of a module's own books those that decide what it computes; Dynamo checks hooks no more than we.
_BOOKS = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}
_LEAVES = (Tensor, str, bytes, int, float, type, FunctionType, BuiltinFunctionType, ModuleType)


class ModelState:
    """Modules, parameters, buffers and attributes of a model, by identity.

    Looks at every dict that makes the model up (`__dict__`, parameters, buffers, submodules, and
    those of plain objects in attributes, such as attention processors) by the interpreter's version
    tag, which any assignment or deletion changes, at empty ones (half of all) for being empty
    still, and at lists and sets by their entries: a submodule replaced, an adapter added or scaled,
    `train()`, an attribute set anew. Writing a weight in place changes nothing here. Raises
    ValueError for a model of too many objects.
    """

    __slots__ = ("_dicts", "_empty", "_lists", "_sets", "_versions")

    def __init__(self, model: nn.Module) -> None:
        found = list(_containers(model))
        self._dicts = [c for c in found if isinstance(c, dict) and c]
        self._empty = [c for c in found if isinstance(c, dict) and not c]
        self._versions = list(map(dict_version, self._dicts))
        self._lists = [(c, list(c)) for c in found if isinstance(c, list)]
        self._sets = [(c, set(c)) for c in found if isinstance(c, set)]

    def unchanged(self) -> bool:
        """Whether everything is what it was."""
        return (
            not any(self._empty)
            and list(map(dict_version, self._dicts)) == self._versions
            and all(len(a) == len(b) and all(map(is_, a, b)) for a, b in self._lists)
            and all(a == b for a, b in self._sets)
        )


def _containers(model: nn.Module) -> Iterator[dict[Any, Any] | list[Any] | set[Any]]:
    """Every dict, list and set that a model is made of, each once."""
    seen: dict[int, Any] = {}
    todo: list[Any] = [model]
    while todo:
        value = todo.pop()
        if value is None or isinstance(value, _LEAVES) or id(value) in seen:
            continue
        seen[id(value)] = value
        if len(seen) > MAX_OBJECTS:
            raise ValueError(f"the model is made of more than {MAX_OBJECTS} objects")
        if isinstance(value, dict):
            yield value
            todo.extend(value.values())
        elif isinstance(value, (list, set)):
            yield value
            todo.extend(value)
        elif isinstance(value, (tuple, frozenset)):
            todo.extend(value)
        elif isinstance(value, MethodType):
            todo.append(value.__self__)
        elif isinstance(value, nn.Module):
            yield value.__dict__
            todo.extend(v for k, v in value.__dict__.items() if k not in _BOOKS)
        elif isinstance(attributes := getattr(value, "__dict__", None), dict):
            todo.append(attributes)
