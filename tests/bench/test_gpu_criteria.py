"""What a run on a GPU has to show: read from results that are written here by hand."""

from __future__ import annotations

import pytest

from bench.gpu import table
from bench.gpu.criteria import criteria, outcomes, shown


def row(way: str, loop: float, computed: int, **more):
    given = {"waits": 0, "device_allocations": 0, "digest": "a", "cold": 1.0} | more
    times = {"loop": loop, "computed": 0.1, "skipped": 1e-4, "gap": 0.0, "host": 0.0}
    return {"model": "flux-dev", "way": way, "steps": 10, "computed_steps": computed,
            "peak_bytes": 1} | times | given  # fmt: skip


def found_in(records, kernels=None):
    found = criteria(table.rows(records), kernels or {})
    return {c["name"].removeprefix("flux-dev: "): c for c in found}, shown(found)


def test_what_has_to_be_shown_is_told_from_what_was_measured():
    records = [
        row("compile", 1.0, 10),
        row("ditcache exact", 1.0, 10),
        row("ditcache 3x", 0.42, 4),
        row("ditcache exact graphs", 0.99, 10),
        row("ditcache 3x graphs", 0.402, 4),
        row("ditcache 3x guarded", 0.41, 4, skipped=3e-4),
        row("diffusers TaylorSeer 3x", 0.6, 4),
        row("cache-dit 3x", 0.4, 4),
        {"model": "flux-dev", "way": "eager", "error": "RuntimeError: no"},
    ]
    large = {"size": "beyond L2", "agrees": True}
    kernels = {"rows": [
        large | {"kernel": "forecast bf16 K=1", "of_copy": 0.95},
        large | {"kernel": "forecast bf16 K=3", "of_copy": 0.85},
        large | {"kernel": "write int8", "of_copy": 0.93},
        {"size": "flux-1024", "agrees": True, "kernel": "write int8", "of_copy": 0.1},
    ]}  # fmt: skip
    by, text = found_in(records, kernels)
    assert by["realised"]["value"] == pytest.approx(0.4 / 0.402, abs=1e-4)
    assert by["realised"]["holds"], "the better of with and without captures"
    assert by["skipped step over computed"]["value"] == pytest.approx(1e-3)
    assert by["kernel forecast"]["holds"] is False
    assert by["kernel write"]["value"] == 0.93
    assert by["waits in a loop"]["holds"]
    assert by["ditcache 3x graphs gives what ditcache 3x does"]["holds"]
    assert by["faster than diffusers TaylorSeer 3x"]["holds"]
    assert by["faster than cache-dit 3x"]["holds"] is False
    assert by["guard on the device"]["value"] == pytest.approx(2e-4)
    assert by["guard on the device"]["holds"] is None
    assert by["cold start, compile"]["value"] == 1.0
    assert (
        "| kernel forecast | at least 0.9 of the copy bandwidth beyond the L2 | 0.85 | NO |" in text
    )


def test_what_does_not_hold_is_said_and_what_was_not_measured_is_not_there():
    by, _ = found_in([
        row("ditcache exact", 1.0, 10),
        row("ditcache 3x", 0.5, 4, waits=2, device_allocations=1, skipped=1e-2),
        row("ditcache 3x graphs", 0.5, 4, digest="b"),
        row("first block, device", 0.5, 10, waits=3),
        row("first block, host", 0.5, 10, waits=9),
    ])  # fmt: skip
    assert by["waits in a loop"]["value"] == 3, "where the host decides it may wait"
    for name in ("realised", "waits in a loop", "device_allocations in a loop",
                 "ditcache 3x graphs gives what ditcache 3x does"):  # fmt: skip
        assert by[name]["holds"] is False, name
    assert not any("faster" in name or "kernel" in name for name in by)


def test_the_outcome_of_each_test_is_in_the_report():
    found = outcomes(
        '<testsuites><testsuite><testcase classname="a" name="b"/><testcase classname="a" name="c">'
        '<failure message="no">more</failure></testcase><testcase classname="a" name="d">'
        '<skipped message="one CUDA device"/></testcase></testsuite></testsuites>'
    )
    assert [(t["test"], t["outcome"], t["message"]) for t in found] == [
        ("a.b", "passed", ""), ("a.c", "failure", "no"), ("a.d", "skipped", "one CUDA device"),
    ]  # fmt: skip
