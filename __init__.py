"""ditcache: a `torch.compile` backend that makes diffusion transformers remember.

    model = torch.compile(model, backend="ditcache", options={"speedup": 3.0})

The first two generations run in full and are recorded; from the third on most denoising steps are
forecast from the outputs of earlier ones. `summary(model)` tells what happened, and
`ditcache.runtime.config.Config` describes all options.

Plans can also be made by hand and kept: `calibrate` records a `Profile`, `Profile.plan` or `tune`
make a `Plan` from it, `apply` puts one in force, `remove` takes it off, `reset` forgets what was
remembered. In a sampling loop of one's own, `with generation():` and `with branch("cond"):` say
where a call of the model stands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .runtime.pipelines import install as _install
from .runtime.scope import branch, generation

if TYPE_CHECKING:
    from .passes.plan_format import Plan, PlanError, RegionSchedule
    from .passes.profile import Profile, ProfileError
    from .runtime.api import apply, calibrate, remove, reset, summary, tune
    from .runtime.config import OptionError
    from .runtime.stats import Summary

__version__ = "0.1.0"
__all__ = [
    "OptionError",
    "Plan",
    "PlanError",
    "Profile",
    "ProfileError",
    "RegionSchedule",
    "Summary",
    "apply",
    "branch",
    "calibrate",
    "generation",
    "remove",
    "reset",
    "summary",
    "tune",
]

# Loaded when first asked for: they bring torch's compiler with them.
_HOMES = {
    "passes.plan_format": ("Plan", "PlanError", "RegionSchedule"),
    "passes.profile": ("Profile", "ProfileError"),
    "runtime.api": ("apply", "calibrate", "remove", "reset", "summary", "tune"),
    "runtime.config": ("OptionError",),
    "runtime.stats": ("Summary",),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_install()
