"""The command line of `python -m bench.NAME`: values are checked, bad input is one line."""

from __future__ import annotations

import argparse
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .bad_input import BadInput

COMPILERS = ("inductor", "eager")
"""What may compile the parts of a step."""
Row = TypeVar("Row")


class Parser(argparse.ArgumentParser):
    """Parses the options of one module; bad input ends it with one line and status 2."""

    def __init__(self, module: str, description: str | None) -> None:
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        """Exit with status 2; argparse's own also prints the usage."""
        self.exit(2, f"{self.prog}: {message} (--help lists all options)\n")

    def out(self, *, default: Path | None = None, required: bool = False) -> None:
        """Add `--out`, the JSON file that the results go to."""
        self.add_argument("--out", type=file, default=default, required=required, help="JSON file")

    def rows_of(self, path: Path | None, make: Callable[..., Row]) -> dict[str, Row]:
        """The rows of an earlier run by name, so that single ones can be measured again.

        None or a missing file: no rows. A file that holds something else is bad input.
        """
        if path is None or not path.exists():
            return {}
        try:
            rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"]
            return {row["name"]: make(**row) for row in rows}
        except (ValueError, LookupError, TypeError):
            self.error(f"{path} holds no rows of an earlier run; give another --out or delete it")


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def factor(text: str) -> float:
    """Steps over computed steps: a number of at least 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 1 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a factor of at least 1, as 3, got {text!r}")
    return value


def one_of(known: Iterable[str]) -> Callable[[str], str]:
    """One of these names; argparse's `choices` do not let a positional list be empty."""
    names = tuple(known)

    def check(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"no {text!r}; expected among {', '.join(names)}")
        return text

    return check


def file(text: str) -> Path:
    """A file that can be written; its folder need not be there yet."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file, got the folder {text}")
    folder(str(path.parent))
    return path


def folder(text: str) -> Path:
    """A folder, or where one can be made."""
    path = Path(text)
    there = next(p for p in (path, *path.absolute().parents) if p.exists())
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"expected a folder, but {there} is a file")
    return path


def writable(path: Path) -> Path:
    """Make a folder and try to write in it; raises BadInput if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return path
    except OSError as error:
        raise BadInput(f"{path}: nothing can be written there ({error.strerror})") from error


def plain_messages() -> None:
    """Log warnings without a prefix, and leave out what other libraries warn their users of."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=UserWarning)
