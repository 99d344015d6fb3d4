"""Glue to diffusers: branch names from its `cache_context`, and which of its hooks shut us out."""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import re
import sys
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from . import scope

MODULE = "diffusers.models.cache_utils"
# By module name: a second copy of this package (as pytest may import) has branches of its own.
_MARK = f"_{__name__}_original"

HOOKED = "diffusers'"  # how every reason of `hooked` begins
_HOOK = re.compile(r"diffusers[\\/]hooks[\\/](\w+)\.py")
_SHUT_OUT = {
    "group_offloading": "diffusers' group offloading moves weights within the step, which "
    "cuts it in pieces; enable_model_cpu_offload() moves the model as a whole and works",
    "layerwise_casting": "diffusers' layer-wise casting casts weights within the step, which "
    "cuts it in pieces; weights quantised by torchao work",
}


def hooked(places: str) -> str | None:
    """Why a step that went through these source files cannot be cached, None if it can.

    `places` is any text with file names in it, such as stack traces.
    """
    for name in dict.fromkeys(_HOOK.findall(places)):
        if name in _SHUT_OUT:
            return _SHUT_OUT[name]
        if "cache" in name or name == "pyramid_attention_broadcast":
            return _two_caches(name)
    return None


def own_cache(model: object) -> str | None:
    """Why a model on which diffusers' `enable_cache` was called is not cached; None for others."""
    if not isinstance(model, torch.nn.Module) or not getattr(model, "is_cache_enabled", False):
        return None
    return _two_caches(type(getattr(model, "_cache_config", None)).__name__)


def _two_caches(name: str) -> str:
    return (
        f"diffusers' own cache is at work ({name}), and two caches would each skip what "
        "the other counts on; call disable_cache() on the model to have ditcache's"
    )


def install() -> None:
    """Make diffusers' cache_context tell the branch; at once, or as soon as diffusers is loaded."""
    module = sys.modules.get(MODULE)
    if module is not None and hasattr(module, "CacheMixin"):
        _wrap(module)
    elif not any(isinstance(f, _PatchOnImport) for f in sys.meta_path):
        sys.meta_path.insert(0, _PatchOnImport())


def _wrap(module: ModuleType) -> None:
    mixin = module.CacheMixin
    if hasattr(mixin, _MARK):
        return
    original = mixin.cache_context

    @contextmanager
    @functools.wraps(original)
    def cache_context(self: Any, name: str, *args: Any, **kwargs: Any) -> Generator[None]:
        token = scope.enter_branch(name)
        try:
            with original(self, name, *args, **kwargs):
                yield
        finally:
            scope.leave_branch(token)

    setattr(mixin, _MARK, original)
    mixin.cache_context = cache_context


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """Wraps the mixin right after its module is executed, whoever imports it."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.loader is None:
            return spec
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            _wrap(module)

        spec.loader.exec_module = exec_module  # pyright: ignore[reportAttributeAccessIssue]
        return spec
