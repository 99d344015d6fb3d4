"""Which methods go together, and in which order they are prepared."""

from __future__ import annotations

import copy
from itertools import combinations

from ..bad_input import BadInput
from .methods import BASELINE, METHODS, Method, Refused

JOINER = "+"
DEFAULT = ("C3+M1", "C3+M2", "C3+M6", "C2+M7", "M1+M2", "C3+M1+M2", "C3+M4", "C2+M3-15")
"""Combinations that a comparison tries if none are asked for."""


class UnknownMethod(BadInput):
    """A name that is no method; lists those that are."""


def parts(name: str) -> tuple[str, ...]:
    """Split "C3+M1" into its methods; raises UnknownMethod."""
    found = tuple(part.strip() for part in name.split(JOINER))
    for part in found:
        if part not in METHODS:
            raise UnknownMethod(f"unknown method {part!r}; expected one of {', '.join(METHODS)}")
    return found


def together(name: str) -> list[Method]:
    """Fresh methods of a combination, in the order of their preparation.

    Raises:
        Refused: two of them exclude each other; says why.
        UnknownMethod: a part is no method.

    """
    names = parts(name)
    if len(set(names)) != len(names):
        raise Refused(f"{name} names a method twice")
    methods = [copy.deepcopy(METHODS[part]) for part in names]
    for first, second in combinations(methods, 2):
        reason = first.compatible_with(second) or second.compatible_with(first)
        if reason:
            raise Refused(reason)
    return sorted(methods, key=lambda method: method.stage)


def wanted(methods: list[str] | None, combined: list[str] | None) -> list[str]:
    """All names to run, the baseline first; unknown ones raise UnknownMethod."""
    names = [
        BASELINE,
        *(METHODS if methods is None else methods),
        *(DEFAULT if combined is None else combined),
    ]
    return list(dict.fromkeys(JOINER.join(parts(name)) for name in names))


def label(name: str) -> str:
    """What a name stands for, in words."""
    return " with ".join(METHODS[part].title for part in parts(name))
