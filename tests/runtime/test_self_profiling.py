"""With no plan: two generations are recorded, the third is planned, the next process remembers."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime.session import session_of

from .helpers import Denoiser, compiled, counting, first, generate, grid, prompt, same


def bodies(made, seed=0, **how):
    with counting() as ran:
        out = generate(made, seed, **how)
    return ran["body"], out


def next_process(model, **options):
    """The same weights in a new module, as another process would load them."""
    torch._dynamo.reset()
    again = Denoiser()
    again.load_state_dict(model.state_dict())
    return compiled(again, **options)


def files(tmp_path):
    return sorted((tmp_path / "ditcache").rglob("*.plan.json"))


def test_two_generations_are_recorded_then_every_further_one_runs_the_plan(tmp_path):
    model = Denoiser()
    made = compiled(model)
    for seed in range(2):
        count, out = bodies(made, seed)
        assert count == 12
        same(out, generate(model, seed))
    assert not files(tmp_path)
    for seed in range(2, 5):
        count, out = bodies(made, seed)
        assert count == 6
        error = (out - generate(model, seed)).norm() / generate(model, seed).norm()
        assert 0 < error < 0.05
    summary = ditcache.summary(made)
    assert (summary.generations, summary.recorded) == (5, 2)
    assert (summary.computed, summary.forecast) == (2 * 12 + 3 * 6, 3 * 6)
    assert summary.fallbacks == {}
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    ("options", "computed"),
    [({"speedup": 3.0}, 4), ({"computed_steps": 5}, 5), ({"policy": "reuse"}, 6)],
)
def test_the_options_budget_and_policy_decide_how_much_computes(options, computed):
    made = compiled(Denoiser(), **options)
    for seed in range(2):
        generate(made, seed)
    assert bodies(made, 2)[0] == computed


def test_max_error_is_a_bound_on_the_prediction():
    made = compiled(Denoiser(), max_error=0.01, profile_generations=1)
    generate(made)
    computed, _ = bodies(made, 1)
    (plan,) = session_of(made).plans
    assert computed == plan.computed_steps < 12
    assert plan.expected_error <= 0.01
    errors = {row.computed_steps: row.expected_error for row in plan.frontier()}
    assert errors[plan.computed_steps - 1] > 0.01, "fewer steps would not have kept it"


def test_the_next_process_starts_planned(tmp_path):
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    expected = generate(made, 7)
    again = next_process(model)
    count, out = bodies(again, 7)
    assert count == 6
    same(out, expected)
    assert ditcache.summary(again).recorded == 0


def test_other_weights_budgets_and_policies_have_other_plans():
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    assert bodies(next_process(Denoiser(seed=1)), 7)[0] == 12
    assert bodies(next_process(model, speedup=3.0), 7)[0] == 12
    assert bodies(next_process(model, policy="reuse"), 7)[0] == 12
    assert bodies(next_process(model), 7)[0] == 6


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\xff\xfe\x00", b'{"format": "ditcache.plan"}', None]
)
def test_a_damaged_file_is_skipped_with_a_warning_and_replaced(tmp_path, caplog, damage):
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    (path,) = files(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    again = next_process(model)
    assert bodies(again, 0)[0] == 12
    assert "ignoring the remembered plan" in caplog.text
    for seed in range(1, 3):
        generate(again, seed)
    assert path.read_bytes() == whole


def test_a_damaged_file_that_is_sound_json_is_not_trusted(tmp_path):
    """A plan of another model under our key (a copied folder) does not run."""
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    (path,) = files(tmp_path)
    signature = ditcache.Plan.load(path).signature
    path.write_text(path.read_text().replace(signature, "0" * 16))
    assert bodies(next_process(model), 0)[0] == 12


def test_remember_false_writes_and_reads_nothing(tmp_path):
    model = Denoiser()
    made = compiled(model, remember=False)
    for seed in range(3):
        generate(made, seed)
    assert not files(tmp_path)
    again = next_process(model)
    for seed in range(3):
        generate(again, seed)
    assert bodies(next_process(model, remember=False), 0)[0] == 12


def test_the_option_cache_dir_comes_before_the_environment(tmp_path):
    made = compiled(Denoiser(), cache_dir=str(tmp_path / "mine"))
    for seed in range(3):
        generate(made, seed)
    assert list((tmp_path / "mine").rglob("*.plan.json"))
    assert not files(tmp_path)


def test_an_explicit_generation_counts_when_it_ends():
    made = compiled(Denoiser())
    for seed in range(2):
        with ditcache.generation():
            generate(made, seed)
    assert "6 of 12" in ditcache.summary(made).plan
    with ditcache.generation():
        assert bodies(made, 2)[0] == 6


def test_another_step_count_is_recorded_and_planned_by_itself():
    model = Denoiser()
    made = compiled(model)
    for steps in (12, 8, 12, 8):
        count, out = bodies(made, steps, timesteps=grid(steps))
        assert count == steps
        same(out, generate(model, steps, timesteps=grid(steps)))
    assert [bodies(made, 9, timesteps=grid(s))[0] for s in (12, 8, 12)] == [6, 4, 6]


def test_another_resolution_is_recorded_and_planned_by_itself():
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    for seed in range(2):
        count, out = bodies(made, seed, tokens=10)
        assert count == 12, "the plan is for another shape"
        same(out, generate(model, seed, tokens=10))
    assert bodies(made, 5, tokens=10)[0] == 6
    assert bodies(made, 5)[0] == 6, "the first resolution's plan is still there"


def test_another_batch_size_runs_the_same_plan():
    model = Denoiser()
    made = compiled(model)
    for seed in range(3):
        generate(made, seed)
    count, out = bodies(made, 3, batch=3)
    assert count == 6
    reference = generate(model, 3, batch=3)
    assert (out - reference).norm() / reference.norm() < 0.05


def test_rising_time_is_profiled_and_planned():
    model = Denoiser()
    made = compiled(model)

    def up(called, seed):
        times, x, text = 1 - grid(12), torch.randn(1, 6, 16), prompt(seed)
        with counting() as ran:
            for i, t in enumerate(times):
                after = times[i + 1] if i + 1 < len(times) else 1.0
                x = x - (after - t) * first(called(x, t.expand(1), text))
        return ran["body"], x

    for seed, expected in ((0, 12), (1, 12), (2, 6), (3, 6)):
        torch.manual_seed(seed)
        count, ours = up(made, seed)
        assert count == expected
        torch.manual_seed(seed)
        theirs = up(model, seed)[1]
        assert (ours - theirs).norm() / theirs.norm() < (0.05 if expected == 6 else 1e-9)


def guided(model, seed, names, steps=12, scale=2.0, lengths=(5, 5)):
    cond, uncond = prompt(seed, length=lengths[0]), prompt(99, length=lengths[1])
    times, x = grid(steps), torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(seed))
    for i, t in enumerate(times):
        outs = []
        for name, text in zip(("cond", "uncond"), (cond, uncond), strict=True):
            if names:
                with ditcache.branch(name):
                    outs.append(first(model(x, t.expand(1), text)))
            else:
                outs.append(first(model(x, t.expand(1), text)))
        after = times[i + 1] if i + 1 < len(times) else 0.0
        x = x + (after - t) * (outs[1] + scale * (outs[0] - outs[1]))
    return x


@pytest.mark.parametrize("lengths", [(5, 5), (7, 4)])
@pytest.mark.parametrize("names", [True, False])
def test_sequential_guidance_is_recorded_and_planned(names, lengths):
    model = Denoiser()
    made = compiled(model)
    for seed, expected in ((0, 24), (1, 24), (2, 12), (3, 12)):
        with counting() as ran:
            ours = guided(made, seed, names, lengths=lengths)
        assert ran["body"] == expected
        theirs = guided(model, seed, names, lengths=lengths)
        assert (ours - theirs).norm() / theirs.norm() < (0.05 if expected == 12 else 1e-9)
    assert ditcache.summary(made).fallbacks == {}


def test_generations_of_too_few_steps_are_left_alone(caplog):
    model = Denoiser()
    made = compiled(model)
    for seed in range(4):
        count, out = bodies(made, seed, timesteps=grid(2))
        assert count == 2
        same(out, generate(model, seed, timesteps=grid(2)))
    assert caplog.text.count("no plan could be made") == 1


def test_processes_of_one_generation_add_up(tmp_path):
    """Each records one; the third finds a plan."""
    from ditcache.runtime import session

    model = Denoiser()
    for run in range(3):
        made = next_process(model)
        count, _ = bodies(made, run)
        assert count == (12 if run < 2 else 6)
        session._leave()  # as at the interpreter's exit
        parts = list((tmp_path / "ditcache").rglob("*.profile.safetensors"))
        assert len(parts) == (1 if run == 0 else 0)


def test_a_generation_cut_short_is_not_remembered(tmp_path):
    from ditcache.runtime import session

    made = next_process(Denoiser())
    generate(made, timesteps=grid()[:7])
    session._leave()
    assert not list((tmp_path / "ditcache").rglob("*.profile.safetensors"))


def test_the_plan_is_refined_from_a_few_more_generations_and_then_stands_still(monkeypatch):
    from ditcache.runtime import self_profiling

    monkeypatch.setattr(self_profiling, "REFINE_AT", (2, 4))
    made = compiled(Denoiser())
    counts, plans = [], []
    for seed in range(12):
        counts.append(bodies(made, seed)[0])
        plans.append(session_of(made).plans[-1] if session_of(made).plans else None)
    full = [i for i, n in enumerate(counts) if n == 12]
    assert len(full) == 4
    assert full[:2] == [0, 1]
    assert len(session_of(made).plans) == 1
    assert len({id(p) for p in plans[2:]}) == 3
    assert len({id(p) for p in plans[full[-1] + 2 :]}) == 1
