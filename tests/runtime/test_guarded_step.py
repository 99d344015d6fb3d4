"""A static plan that is left on the device: the same steps computed as where the host decides."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime import branches, captured, if_node, pieces, session, ways
from ditcache.runtime.capture import rehearsing
from ditcache.runtime.cuda_graph_api import CudaGraphApi
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.guard import LEFT
from ditcache.runtime.session import session_of
from torch import Tensor

from .fake_graphs import FakeApi
from .helpers import Denoiser, compiled, first, generate, grid, noise, prompt
from .late import pretend

STEPS = 20


def announced(run, model, seed: int, **more):
    with ditcache.generation(timesteps=grid(STEPS)):
        return run(model, seed, **more)


def astray(model, seed: int) -> Tensor:
    """A usual generation up to step 5, one whose velocities swing after that."""
    times, text = grid(STEPS), prompt(seed)
    ends = torch.cat([times[1:], times.new_zeros(1)])
    x = noise(seed)
    for i, t in enumerate(times):
        y = first(model(x, t.expand(1), text))
        kick = 8.0 * (-1) ** i if i > 5 else 0.0
        x = x - (t - ends[i]) * (y + kick * torch.sign(y))
    return x


@pytest.fixture(scope="module")
def plan():
    made = compiled(Denoiser(), policy="edf", remember=False)
    profile = ditcache.calibrate(made, lambda i: generate(made, i, timesteps=grid(STEPS)), 6)
    return profile.plan(3.0)


@pytest.fixture(scope="module")
def host(plan):
    """What comes out where the host decides: images by seed, and what it says of an odd one."""
    made = compiled(Denoiser(), policy="none", guard="compute")
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, plan)
    images = {s: announced(generate, made, s, timesteps=grid(STEPS)) for s in (30, 31)}
    ditcache.reset(made)
    images["odd"] = announced(astray, made, 3)
    return images, ditcache.summary(made)


def state_of(session):
    for slots in (slots for g in session.generations.open() for slots in g.slots.values()):
        if slots.verdict is not None:
            yield from (slots.verdict.flag, slots.verdict.running)
        if slots._clock is not None:
            yield slots._clock[2].state


@pytest.fixture
def on_device(monkeypatch, plan, host):
    """A model under the plan whose guard decides on a device that is none; and what it read."""
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
    for module in (session, if_node):
        monkeypatch.setattr(module, "missing", lambda: None)
    api = FakeApi(live=lambda: list(state_of(session_of(made))))
    monkeypatch.setattr(session, "graphs_for", lambda c, stats: Graphs(api, stats, c.graph_budget))
    made = compiled(Denoiser(), policy="none", guard="compute", cuda_graphs=True)
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, plan)
    announced(generate, made, 1, timesteps=grid(STEPS))
    ditcache.reset(made)
    reads = pretend(monkeypatch, made, delay=10**6)
    # What a device would do by itself reads here, where there is none.
    for module, name in ((branches, "branch"), (pieces, "clock"), (ways, "tick")):
        monkeypatch.setattr(module, name, unread(getattr(module, name), reads))
    return made, reads


def unread(call, reads):
    def quietly(*args, **kwargs):
        reads.paused = True
        call(*args, **kwargs)
        reads.paused = False

    return quietly


def test_a_usual_generation_computes_what_the_plan_says(on_device, plan, host):
    made, reads = on_device
    found = []

    def forward(*args):
        reads.found.clear()
        out = made(*args)
        found.append(list(reads.found))
        return out

    for seed in (30, 31):
        found.clear()
        before = ditcache.summary(made).computed
        image = announced(generate, forward, seed, timesteps=grid(STEPS))
        assert ditcache.summary(made).computed - before == plan.computed_steps
        assert found[1:] == [[]] * (STEPS - 1), "nothing is read after the first step"
        assert torch.equal(image, host[0][seed])
    summary = ditcache.summary(made)
    assert summary.replays > STEPS
    assert not summary.uncaptured
    assert not summary.fallbacks
    assert summary.computed + summary.forecast == summary.calls


def test_one_that_leaves_the_plan_is_computed_from_there_on(on_device, host):
    made, _ = on_device
    images, theirs = host
    assert torch.equal(announced(astray, made, 3), images["odd"])
    ours = ditcache.summary(made)
    assert theirs.fallbacks[LEFT] > 3
    assert ours.fallbacks.get(LEFT, 0) < theirs.fallbacks[LEFT], "the device knew before the host"
    assert "1 alarms" in ours.guard
    assert "1 alarms" in theirs.guard
    assert ours.computed == theirs.computed
    assert torch.equal(announced(generate, made, 30, timesteps=grid(STEPS)), images[30])


def test_a_timestep_that_is_not_the_plans_is_computed_by_the_device(on_device):
    """The host foresees a step that it does not read; the clock on the device does."""
    made, _ = on_device
    text, times = prompt(5), grid(STEPS)
    with ditcache.generation(timesteps=times):
        x = noise(5)
        for i, t in enumerate(times):
            if i == 7:
                before = ditcache.summary(made).computed
            at = times[12] if i == 7 else t  # not what was announced
            y = first(made(x, at.expand(1), text))
            x = x - y / STEPS
    assert ditcache.summary(made).computed - before == STEPS - 7, "from that step on"
    assert ditcache.summary(made).fallbacks


def test_an_input_that_is_given_back_is_not_written_to(on_device):
    x = torch.ones(2, 3)
    kept = branches.unshared((x, x * 2), {x.untyped_storage().data_ptr()})
    kept[0].zero_()
    assert x.all()


def needs_nodes():
    if if_node.missing() is not None:
        pytest.skip(str(if_node.missing()))


@pytest.mark.gpu
def test_a_conditional_node_of_a_captured_graph_runs_where_its_flag_says():
    needs_nodes()
    flag = torch.zeros(1, dtype=torch.int32, device="cuda")
    x, out = torch.ones(1 << 20, device="cuda"), torch.zeros(1 << 20, device="cuda")
    weights = torch.randn(1 << 10, 1 << 10, device="cuda")

    def product(value: Tensor) -> Tensor:
        return (value.view(1 << 10, -1) @ weights).flatten()

    def step() -> Tensor:
        before = x * 2  # memory of the graph's own, read in the body and after it
        branches.branch(flag, lambda: product(before), out.copy_)
        return before + out

    api = CudaGraphApi()
    with rehearsing():
        step()
    graph, made = api.capture(api.pool(), step)
    made.fill_(7)
    for value, seed in ((1, 0), (0, 1), (1, 2)):
        x.copy_(torch.randn(1 << 20, generator=torch.Generator().manual_seed(seed)))
        out.zero_()
        flag.fill_(value)
        graph.replay()
        full = product(x * 2) * value
        torch.testing.assert_close(out, full, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(made, x * 2 + full, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kick", [0.0, 8.0], ids=["usual", "odd"])
def test_nothing_waits_under_a_guard_on_a_gpu(plan, kick: float):
    needs_nodes()
    images = []
    for graphs in (False, True):
        torch._dynamo.reset()
        made = compiled(Denoiser().cuda(), policy="none", guard="compute", cuda_graphs=graphs)
        text, times = prompt(3).cuda(), grid(STEPS).cuda()
        ends = torch.cat([times[1:], times.new_zeros(1)])
        made(noise().cuda(), torch.ones(1, device="cuda"), text)
        ditcache.apply(made, plan)
        for last in (False, False, False, graphs):
            x = noise(3).cuda()
            try:
                with ditcache.generation(timesteps=grid(STEPS)):
                    for i, t in enumerate(times):
                        if last and i == 1:
                            torch.cuda.set_sync_debug_mode("error")
                        y = first(made(x, t.expand(1), text))
                        swing = kick * (i > 5) * (-1) ** i
                        x = x - (t - ends[i]) * (y + swing * torch.sign(y))
            finally:
                torch.cuda.set_sync_debug_mode("default")
        images.append(x)
        summary = ditcache.summary(made)
        assert bool(summary.fallbacks) == bool(kick)
        assert not summary.uncaptured
        assert bool(summary.replays) == graphs
    torch.testing.assert_close(*images, rtol=1e-3, atol=1e-3)
