"""Calls that a dispatch mode watches, such as a FLOP counter: it has to see every op that runs.

Under such a mode Dynamo runs nothing that it compiled, and never again runs what was called then.
So the mode would count an uncached step, and caching would end. Instead Dynamo is told that nothing
is in the way, and parts run uncompiled, op by op.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from . import dynamo

_watched: ContextVar[bool] = ContextVar("ditcache_op_by_op", default=False)


def watched() -> bool:
    """Whether what runs now is to run op by op."""
    return _watched.get()


def can_watch() -> bool:
    """Whether dispatch modes keep Dynamo from its code that only look at ops.

    A mode of torch's own machinery (fake tensors, tracing) makes something else of them.
    """
    if not dynamo.dispatch_mode_in_the_way():
        return False
    return not any(mode.is_infra_mode() for mode in _get_current_dispatch_mode_stack())


@contextmanager
def watching() -> Generator[None]:
    """Run compiled models op by op, for the dispatch modes that are active to see."""
    token = _watched.set(True)
    try:
        with dynamo.beside_dispatch_modes():
            yield
    finally:
        _watched.reset(token)
