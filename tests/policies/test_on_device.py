"""Decisions made on the device: the same steps computed, the same results, no wait for any."""

from __future__ import annotations

import ditcache
import pytest
import torch
from ditcache.passes.policies import device_limit, make
from ditcache.runtime import branches, captured, if_node, session
from ditcache.runtime.branches import branch
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.session import session_of

from ..runtime.fake_graphs import FakeApi
from ..runtime.helpers import compiled, counting, noise, prompt
from ..runtime.late import pretend
from .models import STEPS, Dit, denoise, subject_of

RULES = [
    ("firstblockcache", {"threshold": 0.15}),
    ("dbcache", {"front": 1, "back": 1, "threshold": 0.3, "warmup": 3}),
    ("teacache", {"threshold": 0.4}),
]


def prepared(policy: str, options, **more):
    made = compiled(Dit(), policy="none", **more)
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, make(policy, options).plan(subject_of(made)))
    return made


def results(made):
    images, computed = [], []
    for seed in range(2):
        with counting() as ran:
            images.append(denoise(made, seed))
        computed.append(ran["mlp"])
    return images, computed


@pytest.mark.parametrize(("policy", "options"), RULES)
def test_the_same_as_decided_by_the_host(policy: str, options):
    host = prepared(policy, options)
    device = prepared(policy, options, device_decisions=True)
    theirs, computed = results(host)
    ours, ran = results(device)
    assert ran == computed
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    there, here = ditcache.summary(host), ditcache.summary(device)
    assert (here.computed, here.forecast) == (there.computed, there.forecast)
    # Without a memory for hoisted values head and tail each run the prologues on the host's way.
    assert here.macs <= there.macs
    assert there.forecast > 2
    assert there.computed > 4
    assert not here.fallbacks


def test_packed_slots_are_refreshed_on_the_device():
    options = {"threshold": 0.15}
    wanted, computed = results(prepared("firstblockcache", options, slot_format="int8"))
    made = prepared("firstblockcache", options, slot_format="int8", device_decisions=True)
    ours, ran = results(made)
    assert ran == computed
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    plain, _ = results(prepared("firstblockcache", options))
    assert any(not torch.equal(a, b) for a, b in zip(ours, plain, strict=True))


def test_what_is_computed_is_counted_as_the_host_would():
    made = prepared("firstblockcache", {"threshold": 0.15}, device_decisions=True)
    session = session_of(made)
    program = session.executors[0].program(session.plans[0])
    by = {(v.stage, v.modes): v for v in program.graph.variants}
    head, step = by["head", ()], by["decided", (True,)]
    miss, hit = by["tail", (False,)], by["tail", (True,)]
    assert step.macs == head.macs + hit.macs
    assert program.decided_macs == miss.macs - hit.macs
    host = prepared("firstblockcache", {"threshold": 0.15})
    session = session_of(host)
    variants = session.executors[0].program(session.plans[0]).graph.variants
    assert all(v.stage != "decided" for v in variants), "only where it is asked for"


@pytest.mark.parametrize(
    ("policy", "options", "can"),
    [
        ("firstblockcache", {}, True),
        ("dbcache", {"max_continuous": 2}, False),
        ("dbcache", {"max_cached": 3}, False),
        ("dbcache", {"order": 1}, False),
        ("teacache", {"coefficients": (2.0, 1.0, 0.0)}, False),
        ("easycache", {}, False),
    ],
)
def test_rules_that_are_more_than_a_limit_stay_with_the_host(policy: str, options, can: bool):
    rule = make(policy, options).rule()
    assert (device_limit(rule) is not None) == can
    if policy != "easycache" and not can:
        made = prepared(policy, {"front": 1, **options} if policy == "dbcache" else options,
                        device_decisions=True)  # fmt: skip
        denoise(made, 0)
        assert not ditcache.summary(made).fallbacks


def test_nothing_is_read_at_a_decision(monkeypatch):
    made = prepared("firstblockcache", {"threshold": 0.15}, device_decisions=True)
    wanted = results(made)
    reads = pretend(monkeypatch, made, delay=2)
    # The branch itself reads here, as there is no device that could take it.
    monkeypatch.setattr(branches, "branch", unread(reads))
    found = []

    def forward(*args):
        reads.found.clear()
        out = made(*args)
        found.append(list(reads.found))
        return out

    ours = []
    for seed in range(2):
        found.clear()
        ours.append(denoise(forward, seed))
        assert found[2:] == [[]] * (STEPS - 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted[0], strict=True))


def unread(reads):
    def decided(*args, **kwargs):
        reads.paused = True
        branch(*args, **kwargs)
        reads.paused = False

    return decided


def state_of(session):
    for slots in (slots for g in session.generations.open() for slots in g.slots.values()):
        yield from (ring.buffer for ring in slots.rings.values())
        if slots.verdict is not None:
            yield from (slots.verdict.flag, slots.verdict.running)


def test_a_step_is_captured_as_one(monkeypatch):
    wanted, _ = results(prepared("firstblockcache", {"threshold": 0.15}, device_decisions=True))
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
    for module in (session, if_node):
        monkeypatch.setattr(module, "missing", lambda: None)
    api = FakeApi(live=lambda: list(state_of(session_of(made))))
    monkeypatch.setattr(session, "graphs_for", lambda c, stats: Graphs(api, stats, c.graph_budget))
    made = prepared("firstblockcache", {"threshold": 0.15}, device_decisions=True, cuda_graphs=True)
    ours = [denoise(made, seed) for seed in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    summary = ditcache.summary(made)
    assert summary.replays > STEPS
    assert not summary.uncaptured


def test_without_conditional_nodes_the_host_decides_between_captures(monkeypatch, caplog):
    wanted, _ = results(prepared("firstblockcache", {"threshold": 0.15}))
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(if_node, "missing", lambda: if_node.MISSING.format("2.11", "none"))
    monkeypatch.setattr(session, "graphs_for", lambda c, stats: Graphs(FakeApi(), stats))
    made = prepared("firstblockcache", {"threshold": 0.15}, device_decisions=True, cuda_graphs=True)
    assert all(torch.equal(denoise(made, seed), wanted[seed]) for seed in range(2))
    assert caplog.text.count("each decision is made on the host") == 1
    assert ditcache.summary(made).replays > STEPS, "of head and tails"
    assert not ditcache.summary(made).uncaptured


def test_a_bad_forecast_is_computed_in_full():
    made = prepared("firstblockcache", {"threshold": 9.0}, device_decisions=True)
    denoise(made, 0)
    state = session_of(made)
    assert state is not None

    def spoil(step: int) -> None:
        if step == 5:
            for generation in state.generations.open():
                for slots in generation.slots.values():
                    for name, ring in slots.rings.items():
                        if not name.startswith("probe"):
                            ring.buffer.fill_(float("inf"))

    image = denoise(made, 1, spoil)
    assert image.isfinite().all()
    assert ditcache.summary(made).fallbacks["NaN or infinity in a forecast"] > 0


@pytest.mark.gpu
def test_no_synchronisation_at_decisions_on_a_gpu():
    made = compiled(Dit().cuda(), policy="none", device_decisions=True, cuda_graphs=True)
    cuda = lambda x, t, c: made(x.cuda(), t.cuda(), c.cuda())  # noqa: E731
    cuda(noise(), torch.ones(1), prompt())
    plan = make("firstblockcache", {"threshold": 0.15}).plan(subject_of(made))
    ditcache.apply(made, plan)
    x, text = noise(1).cuda(), prompt(1).cuda()
    times = torch.tensor(plan.timesteps, device="cuda")
    try:
        for strict in (False, False, True):
            y = x
            with ditcache.generation(timesteps=plan.timesteps):
                for i in range(STEPS):
                    if strict and i == 1:
                        torch.cuda.set_sync_debug_mode("error")
                    y = y - made(y, times[i].expand(1), text) / STEPS
            torch.cuda.set_sync_debug_mode("default")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert y.isfinite().all()
    assert ditcache.summary(made).replays > 0
    assert not ditcache.summary(made).uncaptured
