"""ditcache: a compiler that makes diffusion transformers remember.

Use it as `torch.compile(model, backend="ditcache", options={"speedup": 3.0})`.
"""

from .passes.plan_format import Plan, PlanError, RegionSchedule
from .passes.profile import Profile, ProfileError
from .runtime.api import apply, calibrate, remove, reset, summary, tune
from .runtime.config import OptionError
from .runtime.pipelines import install as _install
from .runtime.scope import branch, generation
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

_install()
