"""Self-made plans on disk, so that the next process starts with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path

from platformdirs import user_cache_dir

from ..passes.plan_format import Plan, PlanError
from ..passes.profile import Profile, ProfileError
from .config import Config
from .stats import log

ENV = "DITCACHE_CACHE_DIR"


def plans_folder(cache_dir: str | None = None) -> Path:
    """Where plans are remembered: under the folder given, the environment's, or the user's."""
    root = cache_dir or os.environ.get(ENV) or user_cache_dir("ditcache", "ditcache")
    return Path(root) / "plans"


class PlanStore:
    """A folder of plans for one model, weights, budget and policy.

    The key covers the graph signature, a fingerprint of the weights, the budget and the policy;
    each grid and output shape has its own file. A file that cannot be read is skipped with a
    warning: the plan is then made anew.
    """

    def __init__(self, config: Config, signature: str, weights: str) -> None:
        what = [signature, weights, config.policy, sorted(config.budget.items()), config.guidance]
        what += [sorted(config.policy_options.items())] if config.policy_options else []
        key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:24]
        self.folder = plans_folder(config.cache_dir) / key

    def load(self) -> list[Plan]:
        """All readable plans in the folder."""
        plans: list[Plan] = []
        for path in sorted(self.folder.glob("*.plan.json")):
            try:
                plans.append(Plan.load(path))
            except (PlanError, OSError) as broken:
                log.warning("ignoring the remembered plan %s: %s", path, broken)
        return plans

    def load_profiles(self) -> list[Profile]:
        """The recordings that earlier processes left; one that cannot be read is skipped."""
        found: list[Profile] = []
        for path in sorted(self.folder.glob("*.profile.safetensors")):
            try:
                found.append(Profile.load(path))
            except (ProfileError, OSError) as broken:
                log.warning("ignoring the remembered recording %s: %s", path, broken)
        return found

    def save_profile(self, profile: Profile) -> None:
        """Keep what was recorded so far, for a process that makes too few generations itself."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            profile.save(self._path_of(profile))
        except OSError as broken:
            log.warning("cannot remember the recording in %s: %s", self.folder, broken)

    def drop_profile(self, profile: Profile) -> None:
        """Forget a recording that has become a plan."""
        with contextlib.suppress(OSError):
            self._path_of(profile).unlink(missing_ok=True)

    def _path_of(self, profile: Profile) -> Path:
        what = [profile.timesteps, profile.branches, [r.shape for r in profile.regions]]
        name = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
        return self.folder / f"{name}.profile.safetensors"

    def save(self, plan: Plan) -> None:
        """Keep a plan; a folder that cannot be written costs a warning, not the generation."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            plan.save(self._place_of(plan))
        except OSError as broken:
            log.warning("cannot remember the plan in %s: %s", self.folder, broken)

    def drop(self, plan: Plan) -> None:
        """Forget a plan."""
        with contextlib.suppress(OSError):
            self._place_of(plan).unlink(missing_ok=True)

    def _place_of(self, plan: Plan) -> Path:
        grid = json.dumps([plan.timesteps, plan.shape, plan.dtype])
        name = hashlib.sha256(grid.encode()).hexdigest()[:16]
        return self.folder / f"{name}.plan.json"
