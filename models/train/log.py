"""The training log: one JSON file of options, hardware and a record every so many steps."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Log:
    """A training log that is written as JSON after each record and printed as it grows."""

    path: Path
    options: Mapping[str, Any]
    records: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    seconds_before: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Wall seconds of training, those before a resumption included."""
        return self.seconds_before + time.perf_counter() - self.started

    def go_on(self, step: int, seconds: float) -> None:
        """Take up the log of a run that is resumed after `step` steps and `seconds`."""
        self.seconds_before = seconds
        if self.path.exists():
            kept = json.loads(self.path.read_text())["records"]
            self.records = [record for record in kept if record["step"] <= step]

    def add(self, step: int, **values: float) -> None:
        """Print and keep one record."""
        record = {"step": step, "seconds": round(self.seconds, 1)}
        record |= {name: round(value, 6) for name, value in values.items()}
        self.records.append(record)
        print(" ".join(f"{name}={value:g}" for name, value in record.items()), flush=True)
        self.write(self.path)

    def write(self, path: Path) -> None:
        """Write the whole log to `path`; a reader never sees half a file."""
        hardware = {
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "torch": torch.__version__,
        }
        # Paths say nothing to a reader elsewhere.
        options = {name: v for name, v in self.options.items() if not isinstance(v, Path)}
        content = {"options": options, "hardware": hardware, "records": self.records}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        partial.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(partial, path)
