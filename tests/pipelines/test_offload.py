"""Weights that live elsewhere: offload to the host.

Run on the CPU with accelerate's own hooks: "onload" and "offload" are both the CPU there, which
leaves the hooks' part in the compiled step as it is on a GPU.
"""

from __future__ import annotations

from . import tiny_pipelines as tiny
from .observing import planned, same, steps_of, watched


def test_model_offload_moves_the_model_outside_of_the_step():
    pipeline = tiny.sd3()
    made, plan = planned(pipeline)
    expected = tiny.generate(pipeline, 1)
    pipeline.enable_model_cpu_offload(device="cpu")
    with watched(made) as calls:
        ours = tiny.generate(pipeline, 1)
    assert calls.computed == steps_of(plan)
    same(ours, expected)
