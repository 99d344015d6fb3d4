"""The device's clock, on the host: the walk over a plan's grid, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from ditcache.kernels.clock import clock, dial_on, grid_on
from ditcache.kernels.forecast import forecast
from ditcache.runtime import foresight

STEPS = (1000.0, 750.0, 500.0, 250.0)


def walk(timesteps, device="cpu", first=0):
    """(row, unknown) after each call; no flag is set, so that what is unknown has left."""
    grid = grid_on(device, STEPS)
    dial = dial_on(device, first)
    seen = []
    for t in timesteps:
        clock(torch.full((2,), float(t), device=device), grid, dial)
        seen.append((dial.row.item(), dial.unknown.item()))
        assert dial.left.item() == dial.unknown.item()
    return seen


WALKS = [
    (STEPS, 0, [(0, 0), (1, 0), (2, 0), (3, 0)]),
    ((*STEPS, *STEPS[:2]), 0, [(0, 0), (1, 0), (2, 0), (3, 0), (0, 0), (1, 0)]),
    ((1000, 500, 250), 0, [(0, 0), (0, 1), (0, 1)]),
    ((1000, 500, 1000, 750), 0, [(0, 0), (0, 1), (0, 0), (1, 0)]),
    ((1000, 1000), 0, [(0, 0), (0, 0)]),
    ((1000, 750, 750), 0, [(0, 0), (1, 0), (1, 1)]),
    ((750, 500), 0, [(-1, 1), (-1, 1)]),
    ((500, 250, 500), 2, [(2, 0), (3, 0), (2, 0)]),
    ((1000, 763, 487, 250, 100), 0, [(0, 0), (1, 0), (2, 0), (3, 0), (3, 1)]),
    ((1000, float("nan"), 750), 0, [(0, 0), (0, 1), (0, 1)]),
]


@pytest.mark.parametrize(("timesteps", "first", "expected"), WALKS)
def test_the_row_follows_the_timesteps_along_the_grid(timesteps, first, expected):
    assert walk(timesteps, first=first) == expected


def test_it_takes_for_a_step_what_the_host_does():
    grid = grid_on("cpu", STEPS)
    for step, at in enumerate(STEPS):
        for off in (-80.0, -60.0, 0.0, 60.0, 80.0):  # a quarter of the way is 62.5
            near = abs(off) <= float(grid.within[step])
            assert near == foresight.close_to(STEPS, step, at + off)
            assert near == (abs(off) < 62.5)


@pytest.mark.parametrize(
    ("timestep", "row"),
    [
        (torch.tensor(1000), 0),
        (torch.tensor([1000, 1000]), 0),
        (torch.tensor([1000.0, 750.0]), -1),
        (torch.tensor([[0.0, 1000.0, 1000.0]]), 0),
        (torch.tensor([[0.0, 500.0, 1000.0]]), -1),
    ],
)
def test_a_batch_counts_if_its_samples_stand_at_one_timestep(timestep, row):
    dial = dial_on("cpu")
    clock(timestep, grid_on("cpu", STEPS), dial)
    assert dial.row.item() == row
    assert dial.unknown.item() == (row < 0)


def test_a_forecast_reads_the_row_of_the_clock():
    grid, dial, table = grid_on("cpu", STEPS), dial_on("cpu"), torch.arange(8.0).view(4, 2)
    slot, made = torch.ones(2, 3), []
    for t in STEPS:
        clock(torch.tensor([t]), grid, dial)
        made.append(forecast(slot, table, row=dial.row)[0].item())
    assert made == [1.0, 5.0, 9.0, 13.0]


def test_a_flag_ends_the_plan():
    grid, dial, flag = grid_on("cpu", STEPS), dial_on("cpu"), torch.zeros(1, dtype=torch.int32)
    seen = []
    for t, value in zip(STEPS, (0, 1, 1, 0), strict=True):
        flag.fill_(value)
        clock(torch.tensor([t]), grid, dial, flag)
        seen.append((dial.unknown.item(), dial.left.item()))
    assert seen == [(0, 0), (0, 1), (0, 1), (0, 0)]


def test_clear_sets_back_in_place():
    dial = dial_on("cpu")
    where = dial.state.data_ptr()
    clock(torch.tensor([1000.0]), grid_on("cpu", STEPS), dial)
    dial.clear(first=2)
    assert dial.state.tolist() == [-1, 0, 1, 2]
    assert dial.state.data_ptr() == where


def test_what_is_no_timestep_or_no_grid_is_named():
    grid, dial = grid_on("cpu", STEPS), dial_on("cpu")
    for bad in (torch.ones(0), torch.ones(1, dtype=torch.complex64), torch.tensor([True])):
        with pytest.raises(ValueError, match="a timestep of real numbers"):
            clock(bad, grid, dial)
    with pytest.raises(ValueError, match="the timestep on cpu"):
        clock(torch.ones(1, device="meta"), grid, dial)
    with pytest.raises(ValueError, match="at least one timestep"):
        grid_on("cpu", ())


@pytest.mark.gpu
@pytest.mark.parametrize(("timesteps", "first", "expected"), WALKS)
def test_the_row_follows_the_timesteps_on_a_device(timesteps, first, expected):
    assert walk(timesteps, "cuda", first) == expected


@pytest.mark.gpu
def test_a_captured_graph_finds_its_step_in_each_replay():
    grid, dial = grid_on("cuda", STEPS), dial_on("cuda")
    table, slot = torch.arange(8.0, device="cuda").view(4, 2), torch.ones(2, 3, device="cuda")
    timestep = torch.zeros(2, device="cuda")

    def step():
        clock(timestep, grid, dial)
        return forecast(slot, table, row=dial.row)

    step()  # compiles outside the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = step()
    dial.clear()
    seen = []
    for t in STEPS:
        timestep.fill_(t)
        graph.replay()
        seen.append(made[0].item())
    assert seen == [1.0, 5.0, 9.0, 13.0]
