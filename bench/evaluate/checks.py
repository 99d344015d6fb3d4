"""What would be refused in the end is refused before the model is loaded."""

from __future__ import annotations

from pathlib import Path

from ditcache import Plan

from ..arguments import writable
from ..bad_input import BadInput
from ..compare.inputs import PICTURES
from ..compare.small import SMALL
from .settings import UNCACHED, Settings

REAL = "real"
FEWEST_STEPS = 3  # that a profile can be of


class UnusableReference(BadInput):
    """The reference set cannot be used; says what was expected."""


def check(settings: Settings, out: Path) -> dict[str, Plan]:
    """Look at all that the command names but the model; gives the plans by name.

    Raises:
        BadInput: OUT cannot be written, there is no such reference set, or two plans of one name.
        PlanError: a file is no plan.

    """
    writable(out)
    enough_steps(settings, settings.request.steps)
    model, reference = settings.request.model, settings.reference
    if reference == REAL and not Path(REAL).is_dir() and model not in SMALL and ":" not in model:
        raise UnusableReference(
            f'"{REAL}" stands for the data of {", ".join(SMALL)}; give a folder of pictures'
        )
    if reference not in (None, REAL):
        pictures(Path(reference))
    plans: dict[str, Plan] = {}
    taken = [UNCACHED, *(f"{s:g}x" for s in settings.speedups)]
    for place in settings.plans:
        name = Path(place).name.removesuffix(".json").removesuffix(".plan")
        if name in (*taken, *plans):
            raise BadInput(f"{place}: another variant is called {name}; name the file otherwise")
        plans[name] = Plan.load(place)
    return plans


def enough_steps(settings: Settings, steps: int | None) -> None:
    """Raise BadInput where plans are to be made for fewer steps than have one (None: unknown)."""
    if settings.speedups and steps is not None and steps < FEWEST_STEPS:
        raise BadInput(f"--speedup needs at least {FEWEST_STEPS} steps, got {steps}")


def pictures(folder: Path) -> list[Path]:
    """The pictures below a folder, in order of name; raises UnusableReference for less than two."""
    if not folder.is_dir():
        raise UnusableReference(f"{folder}: no such folder; expected the reference pictures")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if len(paths) < 2:
        known = ", ".join(sorted(PICTURES))
        raise UnusableReference(f"{folder}: fewer than two pictures in it ({known})")
    return paths
