"""What travels with a plan: checks, the Gram matrix in a few columns, and its frontier."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
from ditcache.passes.checks import checks_for, from_low_rank, low_rank
from ditcache.passes.densify import densify
from ditcache.passes.error_diffusion import error_weights, expected_error, score
from ditcache.passes.plan_format import Plan, PlanError
from ditcache.passes.solver_weights import from_grid


def test_the_gram_matrix_survives_in_a_few_columns(synthetic):
    g = synthetic.gram(synthetic.outputs(synthetic.grid(50), 4))
    basis = low_rank(g)
    assert len(basis[0]) <= 12
    assert np.abs(from_low_rank(basis) - g).max() < 1e-3 * np.abs(g).max()


def test_checks_are_the_residuals_of_least_squares(synthetic):
    y = synthetic.outputs(synthetic.grid(20), 1)[0]
    rows = checks_for(y @ y.T / y.shape[1], (0, 4, 9, 15), 2)
    assert rows[0] == (0.0, 0.0, 0.0)
    for i, step in ((1, 4), (2, 9), (3, 15)):
        rms, *weights = rows[i]
        before = [(0, 4, 9, 15)[j] for j in range(i - 1, max(i - 3, -1), -1)]
        made = sum(w * y[s] for w, s in zip(weights, before, strict=False))
        assert rms == pytest.approx(
            np.linalg.norm(y[step] - made) / np.linalg.norm(y[step]), rel=1e-2
        )


def test_a_plan_with_evidence_is_small_and_comes_back(synthetic, tmp_path):
    plan = synthetic.profile(50).plan(5)
    assert plan.checks is not None
    assert len(plan.checks) == 10
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert (tmp_path / "plan.json").stat().st_size < 32_000
    bare = replace(plan, sampler=None, basis=None, checks=None)
    assert Plan.from_json(bare.to_json()) == bare
    for name, value in (("checks", plan.checks[:-1]), ("sampler", (1.0,)), ("basis", ((1.0,),))):
        with pytest.raises(PlanError, match=name):
            replace(plan, **{name: value}).validate()


def test_the_frontier_of_a_plan_is_that_of_its_profile(synthetic):
    profile = synthetic.profile(16)
    mine, whole = profile.plan(4).frontier(), profile.frontier()
    assert [row.computed_steps for row in mine] == [row.computed_steps for row in whole]
    for one, two in zip(mine, whole, strict=True):
        assert one.expected_error == pytest.approx(two.expected_error, rel=0.2, abs=1e-4)
    with pytest.raises(PlanError, match="not solved from a profile"):
        replace(profile.plan(4), basis=None).frontier()


def test_a_frontier_is_a_table_and_a_picture(synthetic, tmp_path, monkeypatch):
    frontier = synthetic.profile(12).frontier()
    text = str(frontier)
    assert "predicted error" in text
    assert "6.00x fewer" in text
    pytest.importorskip("matplotlib")
    frontier.plot(tmp_path / "deep" / "frontier.png")
    assert (tmp_path / "deep" / "frontier.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        frontier.plot(tmp_path / "other.png")


def test_guidance_below_is_solved_above_is_reused_and_far_above_is_refused(synthetic):
    grid = synthetic.grid(20)
    one, two = synthetic.outputs(grid, 2, 1), synthetic.outputs(grid, 2, 2)
    both = np.stack([one, two], 1)
    gram = np.einsum("nasm,nbtm->abst", both, both) / (2 * 300)
    region = replace(synthetic.profile(20).regions[0], gram=gram)
    profile = synthetic.profile(20, branches=("cond", "uncond"), regions=(region,), guidance=3.0)
    same, above = profile.plan(4), profile.plan(4, guidance=5.0)
    assert above.regions == same.regions
    assert (same.guidance, above.guidance) == (3.0, 5.0)
    assert profile.plan(4, guidance=1.0).regions != same.regions
    with pytest.raises(PlanError, match="calibrate again at the guidance"):
        profile.plan(4, guidance=6.5)


def test_densify_undoes_what_a_harder_sample_has_suffered(synthetic):
    """Outputs that bend twice as fast as in calibration, densified from the third computed step."""
    profile, grid = synthetic.profile(50), np.asarray(synthetic.grid(50))
    plan, c = profile.plan(5), from_grid(grid.tolist())
    denser = densify(plan, plan.regions[0].computed[2])
    assert denser is not None
    assert plan.computed_steps < denser.computed_steps < 2 * plan.computed_steps

    def reckoned(made):
        region = made.regions[0]
        own = from_low_rank(plan.basis)
        return expected_error(region.computed, np.asarray(region.weights), own, c)

    for step in plan.regions[0].computed[3:]:
        late = densify(plan, step)
        assert late is None or reckoned(late) < reckoned(plan)
    fast = synthetic.gram(synthetic.outputs(tuple((2 * grid).tolist()), 4, seed=5))

    def error(made):
        region = made.regions[0]
        left = error_weights(region.computed, np.asarray(region.weights), c)
        return float(score(left, fast, c))

    assert error(denser) < 0.5 * error(plan)
