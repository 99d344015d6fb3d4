"""Real models at real size: what a step is made of, and what a plan at 2x leaves of it.

    python -m bench.real_size --out bench/results/real-size.json

Each model is one run of `ditcache-opt` on the meta device: no weights, no arithmetic, a process of
its own whose processor seconds and peak memory are written down. Sizes are those of `models.zoo`
(one call of the pipeline's default request, in bf16); the plan is `--policy taylor-1 --speedup 2`
over the pipeline's default number of steps, whose slots hold two whole outputs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ditcache.models import zoo
from ditcache.models.zoo_entries import ARCHITECTURES

from .arguments import Parser, one_of
from .environment import environment, write_json

MODELS = (
    "flux-dev wan2.1-1.3b wan2.1-14b svd-xt sd3.5-large qwen-image dit-xl-2 pixart-sigma sana-1.6b "
    "hunyuan-video ltx"
).split()
POLICY, SPEEDUP = "taylor-1", 2.0
CLASSES = ("const", "condition", "step", "volatile")


@dataclass(frozen=True)
class Row:
    """One model: figures of one call, then of a whole generation under the plan.

    `macs` and `weight_bytes` are by what the work changes with (nothing, the prompt, the timestep,
    the latents); a weight counts for the most volatile work that reads it. `live_bytes` is what
    the deep part would have to keep, the cheapest cut below the whole denoiser (None: no such cut).
    `slot_bytes` counts both guidance branches where they are separate calls or rows of one.
    """

    name: str
    size: str
    guidance: str
    steps: int
    parameters: int
    regions: dict[str, int]
    macs: dict[str, int]
    weight_bytes: dict[str, int]
    output_bytes: int
    live_bytes: int | None
    computed: int
    reduction: float
    slot_bytes: int
    cpu_seconds: float
    peak_bytes: int

    @property
    def total_macs(self) -> int:
        return sum(self.macs.values())

    def share(self, of: dict[str, int]) -> str:
        """Const, condition and step shares in per cent, as `0.0 / 0.1 / 28.0`."""
        total = sum(of.values())
        return " / ".join(f"{100 * of[c] / total:.2f}" for c in CLASSES[:3])


def measure(name: str) -> Row:
    """Run ditcache-opt on one model; raises CalledProcessError with its message if it fails."""
    entry = ARCHITECTURES[name]
    arguments = ["--policy", POLICY, "--speedup", f"{SPEEDUP:g}", "--steps", str(entry.steps)]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "opt.json"
        command = [sys.executable, "-m", "ditcache.passes.opt", name, *arguments]
        command += ["--emit", "json", "-o", str(out)]
        process = subprocess.Popen(command)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = usage.ru_utime + usage.ru_stime
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            raise subprocess.CalledProcessError(process.returncode, command)
        found = json.loads(out.read_text())
    return row(name, found, seconds, usage.ru_maxrss * 1024)


def row(name: str, found: dict[str, Any], seconds: float, peak_bytes: int) -> Row:
    """The figures of one model, from what `ditcache-opt --emit json` wrote."""
    entry = ARCHITECTURES[name]
    regions = {r["name"]: r for r in found["regions"]}
    full, forecast = (
        next(v["macs"] for v in found["variants"] if bool(v["forecast"]) is hit)
        for hit in (False, True)
    )
    hoisted = {p["name"]: p["macs"] for p in found["prologues"]}
    computed = round(entry.steps / SPEEDUP)
    macs = {c: found["totals"][c]["macs"] for c in CLASSES}
    cached = (
        computed * (full + hoisted.get("step", 0))
        + (entry.steps - computed) * forecast
        + hoisted.get("condition", 0)
    )
    both = 2 if entry.guidance in ("separate", "batched") else 1
    frames = f", {entry.frames} frames" if entry.frames > 1 else ""
    deep = regions.get("deep")
    return Row(
        name=name,
        size=f"{entry.height}x{entry.width}{frames}",
        guidance=entry.guidance,
        steps=entry.steps,
        parameters=zoo.build(name).info.parameters,
        regions=dict(Counter(r["kind"] for r in found["regions"])),
        macs=macs,
        weight_bytes={c: found["totals"][c]["weight_bytes"] for c in CLASSES},
        output_bytes=regions["denoiser"]["live_bytes"],
        live_bytes=None if deep is None else deep["live_bytes"],
        computed=computed,
        reduction=round(entry.steps * sum(macs.values()) / cached, 4),
        slot_bytes=both * sum(s["bytes"] for s in found["slots"]),
        cpu_seconds=round(seconds, 1),
        peak_bytes=peak_bytes,
    )


def markdown(rows: list[Row]) -> str:
    """The table of the README; TFLOP are two for each MAC, shares are const / condition / step."""
    lines = [
        "| model | one call | parameters | TFLOP | blocks + branches | weights | % of MACs | "
        "% of weights | deep cut keeps | 2x: fewer MACs | slots |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        weights = sum(r.weight_bytes.values())
        deep = "–" if r.live_bytes is None else _bytes(r.live_bytes)
        lines.append(
            f"| {r.name} | {r.size} | {r.parameters / 1e9:.2f} B | {2 * r.total_macs / 1e12:.4g} | "
            f"{r.regions.get('block', 0)} + {r.regions.get('branch', 0)} | {_bytes(weights)} | "
            f"{r.share(r.macs)} | {r.share(r.weight_bytes)} | {deep} | {r.reduction:.3f}x | "
            f"{_bytes(r.slot_bytes)} |"
        )
    return "\n".join(lines)


def _bytes(count: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count / 1000:.3g} kB"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = Parser("bench.real_size", __doc__)
    parser.out()
    parser.add_argument("names", nargs="*", type=one_of(MODELS), help="models; else all")
    given = parser.parse_args(arguments)
    rows = parser.rows_of(given.out, Row)
    for name in given.names or MODELS:
        rows[name] = made = measure(name)
        print(f"{name}: {made.cpu_seconds} processor s, {_bytes(made.peak_bytes)}", flush=True)
        if given.out is not None:  # after each: a model takes a while
            _write(given.out, rows)
    print(markdown([rows[name] for name in MODELS if name in rows]))


def _write(path: Path, rows: dict[str, Row]) -> None:
    document = {
        "environment": environment("bench.real_size"),
        "policy": POLICY,
        "speedup": SPEEDUP,
        "rows": [asdict(rows[name]) for name in MODELS if name in rows],
    }
    write_json(path, document)


if __name__ == "__main__":
    main()
