"""What `ditcache.summary` says of a session."""

from __future__ import annotations

import torch

from .session import Session
from .stats import Summary


def summary_of(session: Session) -> Summary:
    """A snapshot of plans and counters; waits for what is still to be read of a device."""
    waits = session.late.waits
    session.late.settle()
    stats = session.stats
    plan = session.plans[-1] if session.plans else None
    text = "none"
    if session.idle and any(executor.whole is not None for executor in session.executors):
        text = f"none: {session.config.inner} runs the step as it was captured, whole"
    if plan is not None:
        first = plan.regions[0]
        error = "" if plan.expected_error is None else f", expected error {plan.expected_error:.2g}"
        text = f"{plan.computed_steps} of {len(plan.timesteps)} steps, {first.forecaster}{error}"
        if plan.rule is not None:
            text = f"at least {text}, the rest by {plan.rule.policy}"
    elif session.self_profiling:
        text = f"recording {session.config.recordings} generations first"
    return Summary(
        policy=session.config.policy if session.enabled else "removed",
        plan=text,
        graphs=session.graphs,
        generations=stats.generations,
        calls=stats.calls,
        computed=stats.computed,
        forecast=stats.forecast,
        recorded=stats.recorded,
        macs=stats.macs,
        macs_uncached=stats.macs_uncached,
        slot_bytes=session.generations.slot_bytes
        + (0 if session.offload is None else session.offload.nbytes),
        offloaded_bytes=session.generations.host_bytes,
        hoisted_bytes=sum(executor.hoisted_bytes for executor in session.executors),
        hoist_hits=dict(stats.hoist_hits),
        hoist_runs=dict(stats.hoist_runs),
        fallbacks=dict(stats.fallbacks),
        uncached=tuple(session.uncached),
        lower_seconds=stats.lower_seconds,
        plan_seconds=stats.plan_seconds,
        guard=stats.guard_text(session.guard.action),
        shortcuts=stats.shortcuts,
        late_waits=waits,
        captures=stats.captures,
        replays=stats.replays,
        graph_bytes=session.graph_bytes,
        uncaptured=dict(stats.uncaptured),
        slot_format=session.config.slot_format,
        most_slot_bytes=stats.most_slot_bytes,
        device_peak_bytes=_device_peak(),
    )


def _device_peak() -> int:
    """The most bytes allocated on any CUDA device."""
    if not torch.cuda.is_initialized():
        return 0
    return max(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
