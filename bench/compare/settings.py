"""What one comparison runs, and its journal: one JSON line for each thing that happened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checksums import MARK, sha256
from .small import SMALL
from .subjects import Request

SETTINGS, JUDGED = "settings.json", "quality.jsonl"
JOURNAL, TIMES = "runs.jsonl", "times.jsonl"
# The event of a model or inputs that no method could use.
UNUSABLE = "unusable"


@dataclass(frozen=True)
class Settings:
    """A comparison, as `settings.json` beside its results.

    Every sample is generated once; the first `timing_samples` of them `repeats` times. With
    `only_timing` the others are left out and no frames are kept.
    """

    request: Request
    names: tuple[str, ...] = ()
    repeats: int = 3
    timing_samples: int = 1
    only_timing: bool = False

    @property
    def journal(self) -> str:
        """The file of this comparison's runs: times that are measured again have their own."""
        return TIMES if self.only_timing else JOURNAL

    def key(self) -> str:
        """Hash of what decides the frames; lines of another key are not used again."""
        digest = hashlib.sha256(json.dumps(asdict(self.request), sort_keys=True).encode())
        for place in (self.request.model, *self.request.weights.values()):
            digest.update(_stamp(place).encode())
        return digest.hexdigest()[:16]

    def save(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        document = {"key": self.key()} | asdict(self)
        (out / SETTINGS).write_text(json.dumps(document, indent=1) + "\n")

    @staticmethod
    def load(out: Path) -> Settings:
        data = json.loads((out / SETTINGS).read_text())
        return Settings(
            request=Request(**data["request"] | {"prompts": tuple(data["request"]["prompts"])}),
            names=tuple(data["names"]),
            repeats=data["repeats"],
            timing_samples=data["timing_samples"],
            only_timing=data["only_timing"],
        )


def saved_key(out: Path) -> str:
    """Key under which the comparison was started: all its processes write under the same."""
    return json.loads((out / SETTINGS).read_text())["key"]


def _stamp(place: str) -> str:
    """What tells the weights there from others: a model that was trained on is another model."""
    if place in SMALL:
        return sha256(Path(__file__).resolve().parents[2] / "models" / "tiny" / place)
    root = Path(place.partition(MARK)[0])
    files = sorted(root.rglob("*.safetensors")) if root.is_dir() else [root]
    seen = [(f.name, s.st_size, s.st_mtime_ns) for f in files if f.is_file() for s in [f.stat()]]
    return repr(seen)


@dataclass
class Journal:
    """Lines of one file, those of one key only. Half a last line (a kill) is dropped."""

    path: Path
    key: str
    lines: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def __post_init__(self) -> None:
        self.lines = list(self._read())

    def add(self, **line: Any) -> None:
        """Append a line and hand it to the operating system."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({"key": self.key, **line}) + "\n")
        self.lines.append(line)

    def of(self, event: str, method: str | None = None) -> list[dict[str, Any]]:
        """Lines of this event (and method), oldest first."""
        return [
            line
            for line in self.lines
            if line["event"] == event and method in (None, line.get("method"))
        ]

    def drop(self, keep: Any) -> None:
        """Rewrite the file with the lines for which `keep(line)` holds, of any key."""
        if not self.path.exists():
            return
        kept = [line for line in _parsed(self.path) if line["key"] != self.key or keep(line)]
        part = self.path.with_suffix(".part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept))
        part.replace(self.path)
        self.lines = list(self._read())

    def _read(self) -> Iterator[dict[str, Any]]:
        for line in _parsed(self.path):
            if line.pop("key") == self.key:
                yield line


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    if not path.exists():
        return
    for raw in path.read_text().splitlines():
        try:
            yield json.loads(raw)
        except json.JSONDecodeError:
            continue
