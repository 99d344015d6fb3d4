"""What all adapters share: a model of their own, hung with the library's hooks and freed again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..contestants import Contestant, DoesNotApply, Knobs
from ..macs import MacCounter
from ..workload import Batch


class Peer(Contestant):
    """A library that changes how a model's modules run, on a copy of the model.

    `call_macs` holds, of the latest generation run inside a `MacCounter`, what each call of the
    model cost: the number of skipped steps as seen from outside, whatever the library says.
    """

    kind = "library"
    call_macs: list[int]

    def sample(self, knobs: Knobs, batch: Batch) -> Tensor:
        with self.enabled(knobs) as model:
            return self.generate(model, batch)

    def generate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Run the workload's own loop on the hooked model.

        Raises DoesNotApply if that fails or gives numbers that are not finite.
        """
        workload, steps = self.arena.workload, self.arena.setting.steps
        self.call_macs = []
        before = 0

        def enter(*_: Any) -> None:
            nonlocal before
            before = MacCounter.running()

        def leave(*_: Any) -> None:
            self.call_macs.append(MacCounter.running() - before)

        handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
        try:
            latents = workload.sample(model, batch, steps)
        except Exception as error:
            raise DoesNotApply(f"{type(error).__name__}: {error}") from error
        finally:
            for handle in handles:
                handle.remove()
        if not latents.isfinite().all():
            raise DoesNotApply("runs, but its samples are not finite")
        return latents

    def about(self, knobs: Knobs) -> dict[str, Any]:
        skipped = sum(macs < 0.9 * max(self.call_macs) for macs in self.call_macs)
        return {"calls": len(self.call_macs), "skipped_calls": skipped}

    @contextmanager
    def enabled(self, knobs: Knobs) -> Generator[nn.Module]:
        """Give a copy of the model with the library switched on.

        Raises DoesNotApply with the library's own words if it refuses the model.
        """
        model = self.arena.copy_of_model()
        try:
            self.enable(model, knobs)
        except Exception as error:
            raise DoesNotApply(f"{type(error).__name__}: {error}") from error
        try:
            yield model
        finally:
            self.disable(model)

    @abstractmethod
    def enable(self, model: nn.Module, knobs: Knobs) -> None:
        """Switch the library on."""

    def disable(self, model: nn.Module) -> None:
        """Undo what outlives the model; most libraries leave nothing."""

    def now(self) -> int:
        """Timestep of the current model call, 1000 to 0."""
        return round(1000 * self.arena.workload.position()[1])
