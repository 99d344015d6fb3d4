"""Plan and profile files: round trips, and one clear error for whatever may be wrong."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from ditcache.passes.atomic_file import write_atomically
from ditcache.passes.plan_format import Plan, PlanError, RegionSchedule
from ditcache.passes.profile import Profile, ProfileError


@pytest.fixture
def plan(synthetic) -> Plan:
    return synthetic.profile(12).plan(3)


def test_a_saved_plan_loads_as_it_was(plan, tmp_path):
    plan.save(tmp_path / "deep" / "plan.json")
    assert Plan.load(tmp_path / "deep" / "plan.json") == plan
    text = (tmp_path / "deep" / "plan.json").read_text()
    rows = [line for line in text.splitlines() if line.startswith("        [")]
    assert len(rows) == 12


def test_plan_survives_no_cut(plan, tmp_path):
    text = plan.to_json()
    for size in range(0, len(text) - 2, 37):
        with pytest.raises(PlanError):
            Plan.from_json(text[:size])


def test_plan_refuses_what_is_not_one(plan, tmp_path):
    text = plan.to_json()
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json('{"hello": 1}')
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json("[1, 2]")
    with pytest.raises(PlanError, match="version 9"):
        Plan.from_json(text.replace('"version": 1', '"version": 9'))
    with pytest.raises(PlanError, match='"timesteps" is missing'):
        Plan.from_json(text.replace('"timesteps"', '"other"'))
    with pytest.raises(PlanError, match='"history": expected an integer'):
        Plan.from_json(text.replace('"history": ', '"history": "deep", "other": '))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    with pytest.raises(PlanError, match="not text"):
        Plan.load(tmp_path / "binary")
    with pytest.raises(PlanError, match="no such"):
        Plan.load(tmp_path / "absent")


def region(**changes: object) -> RegionSchedule:
    made = {
        "region": "denoiser",
        "computed": (0, 2),
        "weights": ((0.0, 0.0), (1.0, 0.0), (0.0, 0.0), (2.0, -1.0)),
        "history": 2,
        "forecaster": "by hand",
        "schedule": "by hand",
    }
    return RegionSchedule(**(made | changes))  # type: ignore[arg-type]


def test_a_sound_plan_passes():
    Plan("s", (1.0, 0.7, 0.4, 0.1), (region(),), "by hand").validate()


BROKEN = {
    "V3: .* needs 2 computed": region(weights=((0, 0), (1, 1), (0, 0), (1, 0))),
    "V11: .* 3 rows": region(weights=((0.0, 0.0), (1.0, 0.0), (0.0, 0.0))),
    "V11: .* has 1 weights": region(weights=((0.0,), (1.0, 0.0), (0.0, 0.0), (2.0, -1.0))),
    "V11: .* computes but": region(weights=((0, 0), (1, 0), (1, 0), (1, 0))),
    "V3: .* computed steps": region(computed=(1, 2)),
    "V3: .* increase": region(computed=(0, 2, 2)),
    "not finite": region(weights=((0, 0), (float("nan"), 0), (0, 0), (1, 0))),
    "history must": region(history=0),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_plan_names_the_rule(message):
    with pytest.raises(PlanError, match=message):
        Plan("s", (1.0, 0.7, 0.4, 0.1), (BROKEN[message],), "by hand").validate()


def test_broken_grids_and_regions_are_refused():
    with pytest.raises(PlanError, match="monotone"):
        Plan("s", (1.0, 0.7, 0.7, 0.1), (region(),), "by hand").validate()
    with pytest.raises(PlanError, match="twice"):
        Plan("s", (1.0, 0.7, 0.4, 0.1), (region(), region()), "by hand").validate()
    with pytest.raises(PlanError, match="at least one region"):
        Plan("s", (1.0, 0.7, 0.4, 0.1), (), "by hand").validate()


def same(a: Profile, b: Profile) -> bool:
    return all(
        np.array_equal(getattr(a, f.name), getattr(b, f.name))
        for f in dataclasses.fields(a)
        if f.name != "regions"
    ) and all(
        np.array_equal(r.gram, s.gram)
        and (r.region, r.shape, r.dtype) == (s.region, s.shape, s.dtype)
        for r, s in zip(a.regions, b.regions, strict=True)
    )


def test_a_saved_profile_loads_as_it_was(synthetic, tmp_path):
    p = synthetic.profile(12, solver=np.linspace(-1, -2, 12), guidance=2.0, macs=10, sketch=512)
    p.save(tmp_path / "p.profile")
    assert same(Profile.load(tmp_path / "p.profile"), p)
    data_like = dataclasses.replace(p, power=0.3, adds_up=False, draws_noise=True)
    data_like.save(tmp_path / "p.profile")
    assert same(Profile.load(tmp_path / "p.profile"), data_like)
    bare = synthetic.profile(12)
    bare.save(tmp_path / "p.profile")
    assert same(Profile.load(tmp_path / "p.profile"), bare)
    assert [f.name for f in tmp_path.iterdir()] == ["p.profile"]


def test_damaged_profiles_are_refused(synthetic, tmp_path):
    path = tmp_path / "p.profile"
    synthetic.profile(12).save(path)
    data = path.read_bytes()
    for size in (0, 4, 20, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(ProfileError):
            Profile.load(path)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 60):
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])
        with pytest.raises(ProfileError):
            Profile.load(path)
    path.write_bytes(b"GIF89a" * 10)
    with pytest.raises(ProfileError, match="not a profile"):
        Profile.load(path)
    path.write_bytes(data.replace(b'"version":"1"', b'"version":"7"'))
    with pytest.raises(ProfileError, match="version 7"):
        Profile.load(path)
    with pytest.raises(ProfileError, match="no such"):
        Profile.load(tmp_path / "absent")


def test_unsound_profiles_are_refused(synthetic):
    good = synthetic.profile(12)
    nan = good.regions[0].gram.copy()
    nan[0, 0, 3, 3] = np.nan
    wrong: list[tuple[str, dict[str, object]]] = [
        ("NaN", {"regions": (dataclasses.replace(good.regions[0], gram=nan),)}),
        ("shape", {"branches": ("a", "b")}),
        ("monotone", {"timesteps": (*good.timesteps[:-1], good.timesteps[0])}),
        ("at least one generation", {"samples": 0}),
        ("twice", {"regions": good.regions * 2}),
        ("solver", {"solver": np.ones(3)}),
        ("guidance", {"guidance": float("inf")}),
        ("power", {"power": 0.0}),
    ]
    for message, changes in wrong:
        with pytest.raises(ProfileError, match=message):
            dataclasses.replace(good, **changes)
    with pytest.raises(ProfileError, match="at least 3 steps"):
        synthetic.profile(2)


def test_merged_is_the_weighted_mean(synthetic):
    grid = synthetic.grid(12)
    y = np.concatenate([synthetic.outputs(grid, 2, 1), synthetic.outputs(grid, 6, 2)])
    both = synthetic.profile(12, 2, 1).merged(synthetic.profile(12, 6, 2))
    assert both.samples == 8
    assert np.allclose(both.regions[0].gram[0, 0], synthetic.gram(y))
    with pytest.raises(ProfileError, match="different timesteps"):
        both.merged(synthetic.profile(13))
    with pytest.raises(ProfileError, match="signature"):
        both.merged(synthetic.profile(12, signature="another"))
    one, two = synthetic.profile(12, guidance=2.0), synthetic.profile(12, guidance=4.0)
    assert one.merged(one).guidance == 2.0
    assert one.merged(two).guidance is None


def test_drift_is_the_relative_change(synthetic):
    y = synthetic.outputs(synthetic.grid(12), 1, 0)[0]
    p = synthetic.profile(12, 1, 0)
    change = np.linalg.norm(np.diff(y, axis=0), axis=1) / np.linalg.norm(y[:-1], axis=1)
    assert np.allclose(p.drift("denoiser"), change)
    with pytest.raises(ProfileError, match="not recorded"):
        p.drift("blocks.7")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def broken(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", broken)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [f.name for f in tmp_path.iterdir()] == ["file"]


def test_frontier_lists_every_budget(synthetic):
    rows = synthetic.profile(12).frontier()
    assert [row.computed_steps for row in rows] == list(range(2, 13))
    assert rows[-1].expected_error == 0.0
    assert rows[0].expected_error > rows[-2].expected_error
    assert json.dumps([dataclasses.asdict(row) for row in rows])


def test_a_profile_serves_other_grids(synthetic):
    """Interpolated Gram matrix: close to what calibration on the other grid would give."""
    p = synthetic.profile(50)
    other = tuple(t for t in synthetic.grid(30, 2.0) if t >= p.timesteps[-1])
    exact = synthetic.profile(50, timesteps=p.timesteps)
    plan = p.plan(3, timesteps=other)
    assert plan.timesteps == other
    assert plan.computed_steps == len(other) // 3
    assert p.plan(3, timesteps=p.timesteps) == exact.plan(3)


def test_steps_outside_the_calibrated_range_compute(synthetic):
    p = synthetic.profile(20)
    finer = synthetic.grid(60)
    plan = p.plan(computed_steps=20, timesteps=finer)
    below = [i for i, t in enumerate(finer) if t < p.timesteps[-1]]
    assert set(below) <= set(plan.regions[0].computed)
    assert plan.computed_steps == 20
    with pytest.raises(PlanError, match="same units"):
        p.plan(2, timesteps=[1000.0 * t for t in p.timesteps])
    with pytest.raises(PlanError, match="outside the calibrated range"):
        p.plan(computed_steps=len(below), timesteps=finer)
    with pytest.raises(PlanError, match="runs against"):
        p.plan(2, timesteps=[0.1, 0.5, 0.9])
