"""Nothing waits for the device: what is read late, what that finds, and what follows."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.runtime.foresight import LOST
from ditcache.runtime.late_reads import LateReads
from ditcache.runtime.session import session_of
from torch import Tensor

from .helpers import Denoiser, compiled, euler, first, generate, grid, make_plan, noise, prompt
from .late import SlowCopy, pretend

TEXT = prompt(7)


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(SlowCopy, "waited", 0)
    monkeypatch.setattr(SlowCopy, "delay", 2)


def test_reads_come_in_order_and_none_is_older_than_the_lag(slow):
    late, seen = LateReads(SlowCopy, lag=2), []
    for call in range(6):
        late.count()
        late.look()
        late.read(torch.tensor([float(call)]), lambda v: seen.append(v.item()))
        assert len(late) <= 3
    late.settle()
    assert seen == [0, 1, 2, 3, 4, 5]
    assert len(late) == 0


def test_looking_does_not_wait_within_the_lag(slow, monkeypatch):
    monkeypatch.setattr(SlowCopy, "delay", 10**6)
    late, seen = LateReads(SlowCopy, lag=3), []
    late.read(torch.ones(1), seen.append)
    for _ in range(3):
        late.count()
        late.look()
    assert (SlowCopy.waited, late.waits, seen) == (0, 0, [])
    late.count()
    late.look()
    assert (SlowCopy.waited, late.waits, len(seen)) == (1, 1, 1)


def sample(
    model, seed: int = 0, times: Tensor | None = None, *, cfg: bool = False, **scope
) -> Tensor:
    """A generation on the pretended device, inside `ditcache.generation(**scope)`."""

    cond, uncond = prompt(seed), prompt(seed + 50)

    def forward(x: Tensor, t: Tensor, _: int) -> Tensor:
        at = t.expand(len(x)).to(x.dtype).clone()  # another tensor at each call, as pipelines make
        if not cfg:
            return first(model(x, at, cond))
        with ditcache.branch("cond"):
            y = first(model(x.clone(), at, cond))
        with ditcache.branch("uncond"):
            return y + 2 * (y - first(model(x.clone(), at.clone(), uncond)))

    with ditcache.generation(**scope):
        return euler(forward, noise(seed), grid())


def running(cfg: bool = False, **options):
    """A model under a plan that has made one generation the ordinary way."""
    made = compiled(Denoiser(), policy="none", **options)
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, make_plan(made))
    sample(made, cfg=cfg)
    return made


@pytest.mark.parametrize("cfg", [False, True])
@pytest.mark.parametrize("delay", [0, 2, 10**6])
def test_a_generation_reads_nothing_after_its_first_step(monkeypatch, cfg: bool, delay: int):
    made = running(cfg)
    wanted = sample(made, 3, cfg=cfg)
    reads = pretend(monkeypatch, made, delay=delay)
    found: list[list[str]] = []

    def forward(*args):
        reads.found.clear()
        out = made(*args)
        found.append(list(reads.found))
        return out

    before = ditcache.summary(made).forecast
    late = sample(forward, 3, cfg=cfg, timesteps=grid())
    calls = 1 + cfg
    assert found[0], "the first step is read at once"
    assert found[calls:] == [[]] * (len(found) - calls)
    assert torch.equal(late, wanted)
    summary = ditcache.summary(made)
    assert (summary.late_waits > 0) == (delay > 0)
    assert summary.forecast - before == 7 * calls
    assert not summary.fallbacks


def test_without_an_announced_grid_the_second_step_is_read_too(monkeypatch):
    made = running(True)
    wanted = sample(made, 3, cfg=True)
    reads = pretend(monkeypatch, made)
    found: list[bool] = []

    def forward(*args):
        reads.found.clear()
        out = made(*args)
        found.append(bool(reads.found))
        return out

    assert torch.equal(sample(forward, 3, cfg=True), wanted)
    assert found == [True] * 3 + [False] * 21


def test_late_reads_change_nothing_under_inference_mode(monkeypatch):
    made = running()
    reads = pretend(monkeypatch, made)
    with torch.inference_mode():
        sample(made, 3)  # compiled anew for inference tensors
        wanted = sample(made, 4)
        reads.found.clear()
        late = sample(made, 4, timesteps=grid())
    assert torch.equal(late, wanted)
    assert not ditcache.summary(made).fallbacks


def test_nan_is_noticed_within_the_lag(monkeypatch):
    made = running()
    pretend(monkeypatch, made, delay=10**6)
    session = session_of(made)
    assert session is not None
    forecasts = 0
    text, at = prompt(5), 0

    def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
        nonlocal forecasts, at
        if i == 5:
            for state in session.generations.open():
                for slots in state.slots.values():
                    for ring in slots.rings.values():
                        ring.buffer.fill_(float("nan"))
        return first(made(x, t.expand(1).clone(), text))

    before = ditcache.summary(made)
    with ditcache.generation(timesteps=grid()):
        euler(forward, noise(5), grid())
        after = ditcache.summary(made)
    lost = "NaN or infinity in a forecast"
    assert after.fallbacks[lost] >= 2
    assert after.computed - before.computed > 5, "the rest was computed in full"
    assert not torch.isnan(sample(made, 6)).any(), "the next generation is as always"


def test_what_was_not_finite_is_not_in_the_slots_of_the_next_generation():
    """Unwritten entries count with a weight of zero, and zero times NaN is NaN."""
    made = running()
    session = session_of(made)
    assert session is not None

    def forward(x: Tensor, t: Tensor, i: int) -> Tensor:
        if i == 5:
            for state in session.generations.open():
                for slots in state.slots.values():
                    for ring in slots.rings.values():
                        ring.buffer.fill_(float("nan"))
        return first(made(x, t.expand(1), prompt(5)))

    euler(forward, noise(5), grid())
    assert ditcache.summary(made).fallbacks
    rings = [r for g in session.generations.open() for s in g.slots.values() for r in s.rings]
    assert not rings
    before = ditcache.summary(made).fallbacks
    assert generate(made, 6).isfinite().all()
    assert ditcache.summary(made).fallbacks == before


def test_another_order_than_foreseen_computes_in_full(monkeypatch, caplog):
    """Two unnamed branches where there was one: a call is taken for the next step's."""
    made = running()
    pretend(monkeypatch, made, delay=1)
    plain = Denoiser()
    x = noise(7)

    def forward(model):
        def step(x: Tensor, t: Tensor, _: int) -> Tensor:
            at = t.expand(1)
            y = first(model(x.clone(), at.clone(), TEXT))
            return y + first(model(x.clone(), at.clone(), TEXT)) * 0.5

        return step

    before = ditcache.summary(made).forecast
    with ditcache.generation(timesteps=grid()):
        image = euler(forward(made), x, grid())
    assert torch.allclose(image, euler(forward(plain), x, grid()), atol=1e-5)
    assert ditcache.summary(made).forecast == before
    assert any(LOST in r.message for r in caplog.records)


def test_a_loop_that_skips_a_step_is_found_out(monkeypatch, caplog):
    made = running()
    pretend(monkeypatch, made, delay=1)
    times = grid()
    other = torch.cat([times[:2], times[5:]])  # announced are twelve steps, the loop takes nine
    with ditcache.generation(timesteps=times):
        image = euler(lambda x, t, _: first(made(x, t.expand(1).clone(), TEXT)), noise(7), other)
    wanted = euler(lambda x, t, _: first(Denoiser()(x, t.expand(1), TEXT)), noise(7), other)
    assert torch.allclose(image, wanted, atol=1e-5)
    assert any(LOST in r.message for r in caplog.records)
    assert ditcache.summary(made).fallbacks.get(LOST, 0) > 0
    before = ditcache.summary(made).forecast
    generate(made, seed=9)  # read at once from now on
    assert ditcache.summary(made).forecast == before + 7


@pytest.mark.gpu
@pytest.mark.parametrize("scope", ["announced", "named"])
def test_no_synchronisation_on_a_gpu(scope: str):
    made = compiled(Denoiser().cuda(), policy="none")
    text, times = prompt().cuda(), grid().cuda()
    made(noise().cuda(), torch.ones(1, device="cuda"), text)
    ditcache.apply(made, make_plan(made))

    def generation(strict: bool) -> Tensor:
        x = noise(1).cuda()
        for i, t in enumerate(times):
            if strict and i == (1 if scope == "announced" else 2):
                torch.cuda.set_sync_debug_mode("error")
            with ditcache.branch("cond"):
                y = first(made(x, t.expand(1), text))
            x = x - y / len(times)
        return x

    announced = grid() if scope == "announced" else None
    try:
        for strict in (False, False, True):
            with ditcache.generation(timesteps=announced):
                image = generation(strict)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert image.isfinite().all()
    assert not ditcache.summary(made).fallbacks
