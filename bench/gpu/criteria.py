"""What a run on a GPU has to show, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from xml.etree import ElementTree

from ..ledger import Record

REALISED = {"flux-dev": 0.97, "wan2.1-1.3b": 0.97, "wan2.1-14b": 0.97, "dit-xl-2": 0.9}
SKIPPED_SHARE = 0.005
OF_COPY = 0.9
PEERS = ("diffusers", "cache-dit")
DECIDED = ("ditcache 3x guarded", "first block, device")
"""Ways whose decisions stay on the device."""
BIT_EQUAL = (
    ("ditcache exact", "ditcache exact graphs"),
    ("ditcache 3x", "ditcache 3x graphs"),
    ("ditcache 3x", "ditcache 3x guarded"),
)


@dataclass(frozen=True)
class Criterion:
    """A figure with what it has to be; `holds` is None where nothing is asked, or was measured."""

    name: str
    target: str
    value: Any
    holds: bool | None


def criteria(rows: Sequence[Record], kernels: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All criteria as far as they were measured; `rows` as `table.rows` gives them."""
    found = list(_kernels(kernels))
    models = dict.fromkeys(str(r["model"]) for r in rows)
    for model in models:
        ways = {str(r["way"]): r for r in rows if r["model"] == model and "loop" in r}
        found += _of_model(model, ways)
    return [asdict(c) for c in found]


def _kernels(measured: Mapping[str, Any]) -> Iterator[Criterion]:
    rows = [r for r in measured.get("rows", ()) if r["size"] == "beyond L2"]
    for name in ("forecast", "write"):
        shares = [r["of_copy"] for r in rows if r["kernel"].startswith(name)]
        if shares:
            least = min(shares)
            text = f"at least {OF_COPY} of the copy bandwidth beyond the L2"
            yield Criterion(f"kernel {name}", text, least, least >= OF_COPY)
    if measured.get("rows"):
        agree = all(r["agrees"] for r in measured["rows"])
        yield Criterion("kernels agree with torch", "all", agree, agree)


def _of_model(model: str, ways: Mapping[str, Record]) -> Iterator[Criterion]:
    ours = {k: r for k, r in ways.items() if k.startswith("ditcache ")}
    planned = {k: r for k, r in ours.items() if "realised" in r and "guarded" not in k}
    if planned:
        speeds = {k.removesuffix(" graphs") for k in planned}
        best = {
            s: max(r["realised"] for k, r in planned.items() if k.removesuffix(" graphs") == s)
            for s in speeds
        }
        least, wanted = min(best.values()), REALISED.get(model)
        text = "reported" if wanted is None else f"at least {wanted} at each speedup"
        yield Criterion(f"{model}: realised", text, round(least, 4), _least(least, wanted))
    shares = [r["skipped_share"] for r in planned.values() if "skipped_share" in r]
    if shares:
        holds = min(shares) < SKIPPED_SHARE if model == "flux-dev" else None
        text = f"under {SKIPPED_SHARE}" if holds is not None else "reported"
        yield Criterion(f"{model}: skipped step over computed", text, min(shares), holds)
    steady = [*planned.values(), *(ways[w] for w in DECIDED if w in ways)]
    for what in ("waits", "device_allocations"):
        counts = [r[what] for r in steady if r.get(what) is not None]
        if counts:
            yield Criterion(f"{model}: {what} in a loop", "0", max(counts), max(counts) == 0)
    for one, other in BIT_EQUAL:
        if one in ways and other in ways:
            same = ways[one].get("digest") == ways[other].get("digest")
            yield Criterion(f"{model}: {other} gives what {one} does", "every bit", same, same)
    yield from _against_peers(model, ways, planned)
    guarded, plain = ways.get("ditcache 3x guarded"), ways.get("ditcache 3x graphs")
    if guarded and plain and guarded.get("skipped") and plain.get("skipped"):
        more = guarded["skipped"] - plain["skipped"]
        yield Criterion(f"{model}: guard on the device", "seconds a skipped step", more, None)
    for way in ("compile", "reduce-overhead", "regional", "ditcache exact"):
        if way in ways:
            yield Criterion(f"{model}: cold start, {way}", "seconds", ways[way]["cold"], None)


def _against_peers(
    model: str, ways: Mapping[str, Record], planned: Mapping[str, Record]
) -> Iterator[Criterion]:
    """Each peer against ditcache's fastest loop of as many computed steps."""
    for name, peer in ways.items():
        if not name.startswith(PEERS):
            continue
        same = (r for r in planned.values() if r["computed_steps"] == peer["computed_steps"])
        fastest = min((r["loop"] for r in same), default=None)
        if fastest is not None:
            ratio = peer["loop"] / fastest
            yield Criterion(f"{model}: faster than {name}", "above 1", ratio, ratio > 1)


def _least(value: float, wanted: float | None) -> bool | None:
    return None if wanted is None else value >= wanted


def outcomes(report: str) -> list[dict[str, str]]:
    """Name, outcome and message of each test in a JUnit report."""
    found: list[dict[str, str]] = []
    for case in ElementTree.fromstring(report).iter("testcase"):
        name = f"{case.get('classname', '')}.{case.get('name', '')}"
        bad = next((c for c in case if c.tag in ("failure", "error", "skipped")), None)
        outcome = "passed" if bad is None else bad.tag
        message = "" if bad is None else (bad.get("message") or "")[:300]
        found.append({"test": name, "outcome": outcome, "message": message})
    return found


def shown(found: Iterable[Mapping[str, Any]]) -> str:
    """The criteria as a table."""
    words = {True: "yes", False: "NO", None: ""}
    lines = ["| criterion | target | measured | holds |", "|---|---|---|---|"]
    for c in found:
        value = f"{c['value']:.4g}" if isinstance(c["value"], float) else str(c["value"])
        lines.append(f"| {c['name']} | {c['target']} | {value} | {words[c['holds']]} |")
    return "\n".join(lines)
