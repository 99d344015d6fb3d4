"""What happened, counted: the figures behind `ditcache.summary`."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table

from ..passes.printer import size_text

log = logging.getLogger("ditcache")


@dataclass
class Stats:
    """Counters of one model. MACs count one call of the model at the traced shape."""

    calls: int = 0
    computed: int = 0
    forecast: int = 0
    shortcuts: int = 0  # forecast without Dynamo's guards
    generations: int = 0
    recorded: int = 0
    macs: int = 0
    macs_uncached: int = 0
    hoist_runs: Counter[str] = field(default_factory=Counter[str])
    hoist_hits: Counter[str] = field(default_factory=Counter[str])
    fallbacks: Counter[str] = field(default_factory=Counter[str])
    lower_seconds: float = 0.0
    plan_seconds: float = 0.0
    checks: int = 0
    alarms: int = 0
    densified: int = 0
    worst_strain: float = 0.0
    most_slot_bytes: int = 0
    captures: int = 0
    recaptures: int = 0  # of those, because weights had moved
    replays: int = 0
    uncaptured: Counter[str] = field(default_factory=Counter[str])  # variants, by reason
    said: set[str] = field(default_factory=set[str])

    def fall_back(self, reason: str, detail: str = "") -> None:
        """Count a call that was computed in full against the plan, and say why once."""
        self.fallbacks[reason] += 1
        self.say(reason, f"computing in full: {reason}. {detail}".rstrip())

    def say(self, key: str, message: str) -> None:
        """Log a warning the first time its key comes up."""
        if key not in self.said:
            self.said.add(key)
            log.warning("%s", message)

    def guard_text(self, action: str) -> str:
        """The guard's figures in words."""
        if not self.checks:
            return action
        done = f", {self.densified} densified" if self.densified else ""
        return (
            f"{action}: {self.alarms} alarms{done} in {self.checks} checks, "
            f"at most {self.worst_strain:.2g} times the calibrated change"
        )

    def reset(self) -> None:
        """Zero the counters; what was said stays said."""
        vars(self).update(vars(Stats(said=self.said)))


@dataclass(frozen=True)
class Summary:
    """A snapshot for people and programs; `str()` gives a table.

    - `policy` and `plan`: what is in force, in words. `graphs`: compiled graphs of the model.
    - `generations` that were followed; of these `recorded` to make plans from.
    - `calls` of the model (steps times guidance branches), `computed` in full or `forecast`; of the
      latter `shortcuts` went past Dynamo's guards.
    - `macs` that ran, `macs_uncached` that the same calls would have cost; `reduction` is their
      ratio.
    - `fallbacks`: calls that were computed against the plan, by reason. `uncached`: why graphs of
      the model are not cached at all. `guard`: its checks and alarms, in words.
    - `slot_bytes` and `hoisted_bytes` that are held now, `most_slot_bytes` that slots held at a
      time; `slot_format` is the option; `offloaded_bytes` of slots lie on the host. `hoist_runs`
      and `hoist_hits`: how often hoisted work was done, and how often it was remembered.
    - CUDA graphs: `captures`, `replays`, `graph_bytes`; `uncaptured` counts variants that run
      without, by reason.
    - `extra_bytes` that ditcache holds besides the model now; `device_peak_bytes`: the most that
      the process had allocated on a CUDA device since torch began to count, of several the largest,
      the model included (0 without a device).
    - `late_waits`: how often the host waited for a device, where it reads that late.
    - `lower_seconds` spent compiling variants, `plan_seconds` making plans.
    """

    policy: str
    plan: str
    graphs: int
    generations: int
    calls: int
    computed: int
    forecast: int
    recorded: int
    macs: int
    macs_uncached: int
    slot_bytes: int
    hoisted_bytes: int
    hoist_hits: dict[str, int]
    hoist_runs: dict[str, int]
    fallbacks: dict[str, int]
    uncached: tuple[str, ...]
    lower_seconds: float
    plan_seconds: float
    shortcuts: int = 0
    guard: str = "off"
    captures: int = 0
    replays: int = 0
    graph_bytes: int = 0
    uncaptured: dict[str, int] = field(default_factory=dict[str, int])
    most_slot_bytes: int = 0
    offloaded_bytes: int = 0
    device_peak_bytes: int = 0
    slot_format: str | None = None
    late_waits: int = 0

    @property
    def reduction(self) -> float:
        """MACs of the uncached calls over the MACs that ran."""
        return self.macs_uncached / self.macs if self.macs else 1.0

    @property
    def extra_bytes(self) -> int:
        """Bytes of slots, hoisted values and captured graphs."""
        return self.slot_bytes + self.hoisted_bytes + self.graph_bytes

    def __str__(self) -> str:
        table = Table(title="ditcache", show_header=False, title_justify="left")
        table.add_column(style="bold")
        table.add_column()
        for name, value in self.rows():
            table.add_row(name, value)
        plain = Console(width=100, color_system=None)
        with plain.capture() as captured:
            plain.print(table)
        return captured.get().rstrip()

    def rows(self) -> list[tuple[str, str]]:
        """Label and text of each line."""
        rows = [
            ("policy", self.policy),
            ("plan", self.plan),
            ("generations", f"{self.generations} followed, {self.recorded} recorded"),
            ("calls", f"{self.calls}: {self.computed} computed, {self.forecast} forecast"),
            ("MACs", f"{self.macs:.4g} of {self.macs_uncached:.4g} ({self.reduction:.2f}x fewer)"),
            ("slots", self._slot_text()),
            ("hoisted", size_text(self.hoisted_bytes) + self._hoist_text()),
            ("memory", self._memory_text()),
            ("compile / plan", f"{self.lower_seconds:.1f} s / {self.plan_seconds * 1e3:.0f} ms"),
            ("guard", self.guard),
            ("graphs", str(self.graphs)),
        ]
        if self.captures:
            text = f"{self.captures} captured, {self.replays} replayed"
            rows.append(("CUDA graphs", f"{text}, {size_text(self.graph_bytes)}"))
        rows += [("not captured", f"{why}: {n} variants") for why, n in self.uncaptured.items()]
        rows += [("fallback", f"{reason}: {n} calls") for reason, n in self.fallbacks.items()]
        rows += [("not cached", reason) for reason in self.uncached]
        return rows

    def _slot_text(self) -> str:
        kind = f" as {self.slot_format}" if self.slot_format else ""
        text = f"{size_text(self.slot_bytes)}{kind}, at most {size_text(self.most_slot_bytes)}"
        host = size_text(self.offloaded_bytes)
        return f"{text}, {host} more on the host" if self.offloaded_bytes else text

    def _memory_text(self) -> str:
        text = f"{size_text(self.extra_bytes)} besides the model"
        if self.device_peak_bytes:
            text += f", device peak {size_text(self.device_peak_bytes)}"
        return text

    def _hoist_text(self) -> str:
        names = sorted(set(self.hoist_hits) | set(self.hoist_runs))
        parts = [
            f"{n}: {self.hoist_hits.get(n, 0)} reused, {self.hoist_runs.get(n, 0)} run"
            for n in names
        ]
        return f" ({'; '.join(parts)})" if parts else ""
