"""Reading the JSON of a plan by field: each value as its type, errors by the name of the field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


class FieldError(ValueError):
    """A field that is missing or not what it should be; the message names it."""


def required(data: dict[str, Any], name: str, read: Callable[[Any], T]) -> T:
    """The field `name` as `read` makes it of its value; raises `FieldError`."""
    if name not in data:
        raise FieldError(f'field "{name}" is missing; make the plan again')
    try:
        return read(data[name])
    except (TypeError, ValueError) as error:
        raise FieldError(f'field "{name}": {error}') from None


def optional(data: dict[str, Any], name: str, read: Callable[[Any], T]) -> T | None:
    """The same, None where the field is missing or null."""
    return None if data.get(name) is None else required(data, name, read)


def table(value: Any, what: str) -> dict[str, Any]:
    """A JSON object; `what` says what it should describe."""
    if not isinstance(value, dict):
        raise TypeError(f"expected an object for a {what}, got {type(value).__name__}")
    return cast(dict[str, Any], value)


def items(value: Any, read: Callable[[Any], T]) -> tuple[T, ...]:
    """A list, each item as `read` makes it."""
    if not isinstance(value, list):
        raise TypeError(f"expected a list, got {type(value).__name__}")
    return tuple(read(item) for item in cast(list[Any], value))


def integer(value: Any) -> int:
    """A whole number; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    return value


def number(value: Any) -> float:
    """A number, as a float; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def numbers(value: Any) -> tuple[float, ...]:
    """A list of numbers."""
    return items(value, number)


def integers(value: Any) -> tuple[int, ...]:
    """A list of whole numbers."""
    return items(value, integer)


def matrix(value: Any) -> tuple[tuple[float, ...], ...]:
    """A list of rows of numbers."""
    return items(value, numbers)


def string(value: Any) -> str:
    """Text."""
    if not isinstance(value, str):
        raise TypeError(f"expected text, got {value!r}")
    return value
