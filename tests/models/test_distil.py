"""What the text-to-video model is distilled with: trajectories of known flows, and pools."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from ditcache.models.train.trajectories import Points, Pool, Start, Trajectories, place, shifted

SHAPE = (2, 1, 2, 2)


def straight(x, sigma, prompt):
    """Velocity of the flow whose data are all `prompt`: x = (1 - sigma) prompt + sigma noise."""
    wide = (-1, 1, 1, 1, 1)
    return (x - prompt.view(wide)) / sigma.view(wide)


def curved(x, sigma, prompt):
    """A flow that is not straight: x(sigma) = x(1) cos(1 - sigma) for prompt 0, faster for more."""
    wide = (-1, 1, 1, 1, 1)
    rate = (1.0 + prompt).view(wide)
    return x * rate * torch.tan(rate * (1 - sigma.view(wide)))


def noise(count):
    return Start(torch.randn(count, *SHAPE), torch.ones(count), torch.arange(count))


def test_places_and_noise_levels_are_inverse():
    u = torch.linspace(0, 1, 11)
    torch.testing.assert_close(place(shifted(u, 3.0), 3.0), u)
    assert shifted(torch.tensor(0.5), 3.0).item() == pytest.approx(0.75)


def test_trajectories_end_where_the_flow_leads_and_others_take_their_room():
    torch.manual_seed(0)
    made = Trajectories(straight, noise, 3, shift=3.0, fewest=4, most=8)
    ended = [whole for _ in range(20) for whole in made.step()[1]]
    assert len(ended) > 3
    for whole in ended:
        assert 4 <= len(whole) <= 8
        assert whole.sigma[0] == 1
        assert (whole.sigma.diff() < 0).all()
        assert len(whole.prompt.unique()) == 1
        wanted = whole.prompt.view(-1, 1, 1, 1, 1).expand_as(whole.target).float()
        torch.testing.assert_close(whole.target, wanted, atol=1e-4, rtol=0)


def test_trajectories_are_of_second_order():
    def error(steps):
        torch.manual_seed(1)
        made = Trajectories(
            curved, lambda n: Start(torch.ones(n, *SHAPE), torch.ones(n), torch.zeros(n)), 1,
            shift=1.0, fewest=steps, most=steps,
        )  # fmt: skip
        (end,) = [whole for _ in range(steps) for whole in made.step()[1]]
        return (end.target[0, 0, 0, 0, 0] - torch.cos(torch.tensor(1.0))).abs().item()

    assert error(16) / error(32) == pytest.approx(4, rel=0.25)


def test_points_carry_the_velocity_at_them_and_do_not_change_later():
    made = Trajectories(straight, noise, 2, shift=3.0, fewest=4, most=4)
    first, _ = made.step()
    kept = first.x.clone()
    made.step()
    assert torch.equal(first.x, kept)
    torch.testing.assert_close(first.target, straight(first.x, first.sigma, first.prompt))


def test_a_trajectory_that_begins_later_has_its_share_of_the_steps():
    begun = torch.tensor([0.5])
    made = Trajectories(
        straight, lambda n: Start(torch.randn(n, *SHAPE), begun.expand(n), torch.zeros(n)), 1,
        shift=3.0, fewest=16, most=16,
    )  # fmt: skip
    (whole,) = [whole for _ in range(4) for whole in made.step()[1]]
    assert len(whole) == 4  # 0.5 is at a quarter of the way
    assert whole.sigma[0] == 0.5


def points(*values):
    x = torch.tensor(values, dtype=torch.float32)
    return Points(x.view(-1, 1, 1, 1, 1), x, x.long(), x.view(-1, 1, 1, 1, 1))


def test_a_pool_keeps_the_latest_and_draws_from_all_of_them():
    pool = Pool(4)
    for first in (0, 2, 4):
        pool.add(points(first, first + 1))
    drawn = pool.draw(200)
    assert set(drawn.prompt.tolist()) == {2, 3, 4, 5}
    assert torch.equal(drawn.x.flatten(), drawn.sigma)


def test_four_steps_are_those_of_the_full_models_spacing():
    pytest.importorskip("diffusers")
    from ditcache.models.train.wan_distill import levels

    wanted = shifted(torch.tensor([1.0, 0.75, 0.5, 0.25]), 3.0)
    torch.testing.assert_close(levels(), wanted, atol=5e-4, rtol=0)


@pytest.mark.usefixtures("settings_of_a_fresh_process")
def test_the_script_distils_guidance_and_then_consistency(tmp_path, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    from ditcache.models.train import wan_distill

    teacher = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=1, attention_head_dim=12, in_channels=16,
        out_channels=16, text_dim=384, freq_dim=16, ffn_dim=16, num_layers=1, rope_max_seq_len=64,
    )  # fmt: skip
    teacher.save_pretrained(str(tmp_path / "transformer"))

    def main(kind):
        small = f"{kind} --batch 2 --minutes 0.02 --log-every 1"
        places = ["--folder", str(tmp_path), "--work", str(tmp_path / "work")]
        monkeypatch.setattr(sys, "argv", ["wan_distill", *small.split(), *places])
        wan_distill.main()
        return json.loads((tmp_path / f"{kind}_log.json").read_text())

    with pytest.raises(SystemExit, match="guidance first"):
        main("consistency")
    assert main("guidance")["options"]["guidance"] == 3.0
    assert main("consistency")["records"]
    for folder in ("transformer-guided", "transformer-4-steps"):
        made = diffusers.WanTransformer3DModel.from_pretrained(str(tmp_path / folder))
        assert made.config.num_layers == 1
    scheduler = diffusers.FlowMatchLCMScheduler.from_pretrained(str(tmp_path / "scheduler-4-steps"))
    scheduler.set_timesteps(4)
    torch.testing.assert_close(scheduler.sigmas[:-1], wan_distill.levels())
