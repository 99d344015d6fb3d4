"""More devices than one: the tensors tell which one is meant, not what is current."""

from __future__ import annotations

from contextlib import contextmanager

import ditcache
import pytest
import torch
from ditcache.passes.modules import devices_of
from ditcache.passes.trace import trace
from ditcache.runtime import captured, late_reads, session, values
from ditcache.runtime.capture import InputUse
from ditcache.runtime.captured import Captured
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.session import session_of
from ditcache.runtime.stats import Stats
from torch import Tensor

from .fake_graphs import FakeApi
from .helpers import Denoiser, compiled, first, generate, make_plan, noise, prompt


class Devices(FakeApi):
    """Each device has a stream of its own; notes on which one each call came."""

    def __init__(self) -> None:
        super().__init__()
        self.here = "the current one"
        self.calls: list[tuple[str, str]] = []

    @contextmanager
    def on(self, device: torch.device):
        before, self.here = self.here, str(device)
        yield
        self.here = before

    def stream(self) -> str:
        self.calls.append(("stream", self.here))
        return f"the stream of {self.here}"

    def pool(self):
        self.calls.append(("pool", self.here))
        return super().pool()

    def capture(self, pool, run):
        self.calls.append(("capture", self.here))
        return super().capture(pool, run)

    def release(self) -> None:
        self.calls.append(("release", self.here))


def test_captures_live_on_the_device_of_their_inputs(monkeypatch):
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu", "meta"}))
    api, stats = Devices(), Stats()
    graphs = Graphs(api, stats)
    f = Captured(lambda x: x * 2, (InputUse.VALUE,), "variant", graphs)
    for device in ("cpu", "meta") * 3:
        assert f(torch.ones(3, device=device)).device.type == device
    assert (stats.captures, stats.replays) == (2, 4)
    assert len(api.pools) == 2
    assert not api.followed, "a stream of one device waits for none of another"
    assert {where for _, where in api.calls} == {"cpu", "meta"}
    graphs.clear(torch.device("meta"))
    assert [len(pool) for pool in api.pools] == [1, 0]
    assert f(torch.ones(3)).tolist() == [2, 2, 2]
    assert stats.captures == 2


def test_work_on_two_devices_is_seen_in_the_graph():
    made = trace(Denoiser(), (noise(), torch.ones(1), prompt()), {}, name="one").module
    assert devices_of(made) == {"cpu"}
    node = next(n for n in made.graph.nodes if n.op == "call_function")
    node.meta["example_value"] = torch.ones(3, device="meta")
    assert devices_of(made) == {"cpu", "meta"}


def test_work_on_two_devices_is_not_captured(monkeypatch, caplog):
    """Of a variant, that is: one stream is captured, what is queued on another would run once."""
    monkeypatch.setattr(captured, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(session, "graphs_for", lambda c, stats: Graphs(FakeApi(), stats))
    seen = iter([{"cpu"}, {"cpu", "meta"}])
    monkeypatch.setattr("ditcache.runtime.program.devices_of", lambda _: next(seen, {"cpu"}))
    made = compiled(Denoiser(), policy="none", cuda_graphs=True)
    made(noise(), torch.ones(1), prompt())
    ditcache.apply(made, make_plan(made))
    wanted = [generate(made, seed) for seed in (1, 1)]
    assert torch.equal(*wanted)
    assert ditcache.summary(made).uncaptured == {"work on two devices": 1}
    assert "cpu and meta" in caplog.text


def test_a_guard_needs_its_clock_where_the_latents_are(monkeypatch):
    monkeypatch.setattr(late_reads, "WAITING", frozenset({"cpu", "meta"}))
    made = compiled(Denoiser(), policy="none", guard="compute")
    made(noise(), torch.ones(1), prompt())
    found = session_of(made)
    assert found is not None
    found.guard.on_device = True
    executor = found.executors[0]
    args: list[Tensor] = [noise(), torch.ones(1), prompt()]
    names = [n.name for n in executor.graph.graph.nodes if n.op == "placeholder"]
    places = {n: i for i, n in enumerate(names)}
    inputs: list[Tensor] = [torch.zeros(0)] * len(names)
    inputs[places["hidden_states"]], inputs[places["timestep"]] = args[:2]
    assert executor._ways.guarded(inputs) is args[1]
    inputs[places["timestep"]] = torch.ones(1, device="meta")
    assert executor._ways.guarded(inputs) is None


def test_outputs_on_several_devices_give_one_flag():
    flag = values.finite_flag((torch.ones(3), [torch.full((2,), torch.inf)]))
    assert flag is not None
    assert flag.tolist() == [0]
    both = values.finite_flag((torch.ones(3, device="meta"), torch.ones(3)))
    assert both is not None
    assert both.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
def test_a_model_on_the_second_gpu(graphs: bool):
    """The current device is the first one throughout."""
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device")
    images = []
    for index in (0, 1):
        torch._dynamo.reset()
        device = torch.device("cuda", index)
        made = compiled(Denoiser().to(device), policy="none", cuda_graphs=graphs, guard="compute")
        made(noise().to(device), torch.ones(1, device=device), prompt().to(device))
        ditcache.apply(made, make_plan(made))
        call = lambda x, t, c: first(made(*(v.to(device) for v in (x, t, c)))).cpu()  # noqa: E731, B023
        images.append([generate(call, seed) for seed in (1, 2, 3)])
        assert torch.cuda.current_device() == 0
        summary = ditcache.summary(made)
        assert bool(summary.replays) == graphs
        assert not summary.uncaptured
        assert not summary.fallbacks
    assert all(torch.equal(a, b) for a, b in zip(*images, strict=True))
