"""One way on one model: prepared, warmed up, measured; what fails becomes the result."""

from __future__ import annotations

import gc
import logging
import time
import traceback
from typing import Any

import ditcache
import torch

from .loop import Loop
from .meter import measure, settle, steady
from .ways import Way

LONG = 5.0
"""Seconds of a loop from which on one round is measured."""


def measured(way: Way, loop: Loop, rounds: int) -> dict[str, Any]:
    """Prepare a way, run it twice unmeasured, and measure it; an error becomes the result.

    `cold` is the time until it could be measured; less for a way whose model another had compiled.
    """
    if way.shared not in loop.made:
        afresh(loop)
    started = time.perf_counter()
    try:
        model = way.prepare(loop)
        loop.run(model, steps=way.warm)  # compiles, captures, fills the allocator
        settle(loop)
        began = time.perf_counter()
        found = steady(loop, model, way.warm)
        settle(loop)
        cold = time.perf_counter() - started
        computed = way.computed(loop)
        share = 1 if way.warm is None else way.warm / loop.steps
        long = time.perf_counter() - began > LONG * share
        found |= measure(loop, model, 1 if long else rounds, computed)
        found |= {"steps": loop.steps, "computed_steps": len(computed), "cold": cold}
        return found | way.about(model)
    except Exception as failed:
        afresh(loop)  # what failed is not what others should go on with
        where = "".join(traceback.format_exception(failed)[-6:])
        return {"error": f"{type(failed).__name__}: {failed}"[:500], "where": where[-2000:]}
    finally:
        try:
            way.restore(loop)
        except Exception as failed:  # of a library that did not get as far as its hooks
            logging.getLogger(__name__).debug("restore: %s", failed)


def afresh(loop: Loop) -> None:
    """Give up what was compiled, and the memory that it held."""
    for model, _ in loop.made.values():
        ditcache.reset(model)
        ditcache.remove(model)
    loop.made.clear()
    torch._dynamo.reset()
    gc.collect()
    if loop.timesteps.is_cuda:
        torch.cuda.empty_cache()
