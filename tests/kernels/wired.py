"""Run by the tests beside it with TRITON_INTERPRET=1: models under ditcache, kernels in Triton.

Follows what the runtime calls down to the kernels: each generation runs once with the references
and once with the kernels, gives the same, and one line names the kernels that were launched.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import ditcache
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ditcache.kernels import clock, forecast, launch, probe, write
from ditcache.passes.policies import make
from ditcache.runtime import captured, if_node, late_reads, session
from ditcache.runtime.cuda_graphs import Graphs
from ditcache.runtime.session import session_of

from tests.policies.models import Dit, subject_of
from tests.runtime.fake_graphs import FakeApi
from tests.runtime.helpers import Denoiser, compiled, generate, grid, noise, prompt
from tests.runtime.late import SlowCopy

KERNELS = {
    clock: ("clock_kernel",),
    forecast: ("forecast_kernel",),
    probe: ("distance_kernel", "verdict_kernel"),
    write: ("write_kernel",),
}
LAUNCHED: Counter[str] = Counter()
TOKENS = 40  # so that an output is larger than its sketch


class Counted:
    def __init__(self, name, kernel):
        self.name, self.kernel = name, kernel

    def __getitem__(self, programs):
        LAUNCHED[self.name] += 1
        return self.kernel[programs]


def count_launches():
    for module, names in KERNELS.items():
        for name in names:
            made = Counted(name.removesuffix("_kernel"), getattr(module, name)())
            setattr(module, name, lambda made=made: made)


def run(made, seed):
    with ditcache.generation(timesteps=grid()):
        return generate(made, seed, tokens=TOKENS)


def both_ways(name, made):
    images = {}
    for kernels in (False, True):
        launch.DEVICES = frozenset({"cuda", "cpu"} if kernels else {"cuda"})
        LAUNCHED.clear()
        images[kernels] = run(made, 3)
        assert kernels or not LAUNCHED
    launch.DEVICES = frozenset({"cuda"})
    torch.testing.assert_close(images[True], images[False], rtol=1e-4, atol=1e-4)
    print("ok", name, *sorted(LAUNCHED), flush=True)


def warm(model, **options):
    made = compiled(model, policy="none", **options)
    made(noise(tokens=TOKENS), torch.ones(1), prompt())
    return made


def main():
    count_launches()
    made = compiled(Denoiser(), remember=False, profile_generations=9)
    both_ways("recorder", made)
    made = warm(Denoiser())
    profile = ditcache.calibrate(made, lambda i: run(made, i), 2)
    plan = profile.plan(2.0)
    ditcache.apply(made, plan)
    both_ways("plan", made)
    made = warm(Denoiser(), slot_format="int8")
    ditcache.apply(made, plan)
    both_ways("packed", made)
    made = warm(Dit(), device_decisions=True)
    ditcache.apply(made, make("firstblockcache", {"threshold": 0.15}).plan(subject_of(made)))
    both_ways("decided", made)

    # From here on the host's tensors count as a device's that it has to wait for.
    captured.DEVICES = late_reads.WAITING = frozenset({"cpu"})
    session.missing = if_node.missing = lambda: None
    session.graphs_for = lambda _, stats: Graphs(FakeApi(live=lambda: list(state())), stats)

    def state():
        found = [s for g in session_of(made).generations.open() for s in g.slots.values()]
        for slots in found:
            if slots.verdict is not None:
                yield from (slots.verdict.flag, slots.verdict.running)
            if slots._clock is not None:
                yield slots._clock[2].state

    made = compiled(Denoiser(), policy="none", guard="compute", cuda_graphs=True)
    made(noise(tokens=TOKENS), torch.ones(1), prompt())
    session_of(made).late.transfer = SlowCopy
    ditcache.apply(made, plan)
    both_ways("guarded", made)
    assert not ditcache.summary(made).uncaptured


if __name__ == "__main__":
    with torch.no_grad():
        main()
