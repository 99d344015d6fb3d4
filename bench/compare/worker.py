"""One method in its own process: prepare, warm up, count, then generate every sample.

`python -m ditcache.bench.compare.worker OUT METHOD` reads `settings.json` in OUT and appends to its
journal. Samples whose frames and times are there already are left alone.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from dataclasses import asdict
from pathlib import Path

import torch

from .combine import together
from .frames import frames_path, save_frames
from .inputs import Sample
from .meter import Meter, counting, wait_for_device
from .methods import Method, MethodError, Refused, Setup
from .methods.weights import find
from .settings import UNUSABLE, Journal, Settings, saved_key
from .subjects import Subject, SubjectError, load


class Worker:
    """State of one method's process."""

    def __init__(self, out: Path, name: str) -> None:
        self.out = out
        self.name = name
        self.settings = Settings.load(out)
        self.journal = Journal(out / self.settings.journal, saved_key(out))
        self.methods: list[Method] = []
        self.setup = Setup(names=())

    def run(self) -> None:
        """Do what is missing; what cannot run ends as one line with its reason."""
        try:
            self.methods = together(self.name)
            todo = self._missing()
            if todo:
                self._find_weights()
                self._measure(todo)
        except SubjectError as error:
            self.journal.add(event=UNUSABLE, method=self.name, reason=str(error))
        except (MethodError, Refused) as error:
            self.journal.add(event="failed", method=self.name, reason=str(error))
        except torch.OutOfMemoryError as error:
            self.journal.add(event="failed", method=self.name, reason=f"out of memory: {error}")
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            reason = f"{type(error).__name__}: {first}"
            self.journal.add(event="failed", method=self.name, reason=reason)
            raise

    def _find_weights(self) -> None:
        """Weights that were given and are not there are said before a large model is loaded."""
        for method in self.methods:
            if method.role in self.settings.request.weights:
                find(self.settings.request.weights[method.role], method.name)

    def _missing(self) -> list[tuple[int, int]] | None:
        """(sample, repeat) pairs without a line; None before the number of samples is known."""
        known = self.journal.of("prepared", self.name)
        if not known:
            return [(-1, 0)]
        return self._todo(known[-1]["samples"], judged=not known[-1].get("unjudged"))

    def _todo(self, samples: int, *, judged: bool) -> list[tuple[int, int]]:
        done = {(r["sample"], r["repeat"]) for r in self.journal.of("run", self.name)}
        timed = min(self.settings.timing_samples, samples)
        wanted = [(i, r) for i in range(timed) for r in range(self.settings.repeats)]
        if judged and not self.settings.only_timing:
            wanted += [(i, 0) for i in range(timed, samples)]
        return [pair for pair in wanted if pair not in done]

    def _measure(self, todo: list[tuple[int, int]]) -> None:
        started = time.perf_counter()
        subject = load(self.settings.request)
        fingerprint = subject.fingerprint_of_weights()
        self.setup = Setup(names=tuple(m.name for m in self.methods))
        self.setup.seconds["load"] = time.perf_counter() - started
        with torch.inference_mode(False), torch.no_grad():
            meter = self._prepare(subject, fingerprint)
            if todo[0][0] < 0:
                todo = self._todo(len(subject.samples), judged=not subject.unjudged)
            for index, repeat in todo:
                self._sample(subject, meter, index, repeat)
        facts: dict[str, object] = {}
        for method in self.methods:
            facts |= method.facts(subject)
        self.journal.add(event="finished", method=self.name, facts=facts)

    def _prepare(self, subject: Subject, fingerprint: str) -> Meter:
        """Put the methods into the pipeline, warm up, count; all that is known goes on record."""
        full, frames = subject.steps, subject.frames
        raw = list(subject.denoisers.values())
        for method in self.methods:
            method.prepare(subject, self.setup)
        if all(a is b for a, b in zip(raw, subject.denoisers.values(), strict=True)):
            modules = raw
        else:
            modules = [getattr(m, "_orig_mod", m) for m in subject.denoisers.values()]
        with self.setup.clocked("first generation"):
            subject.generate(subject.samples[0])
        for method in self.methods:
            method.finish(subject, self.setup)
        meter = Meter(subject.pipeline)
        with self.setup.clocked("warm-up"):
            self._generate(subject, meter, subject.samples[0])
        work = self._count(subject, modules)
        self.journal.add(
            event="prepared",
            method=self.name,
            model=subject.name,
            kind=subject.kind,
            fingerprint=fingerprint,
            samples=len(subject.samples),
            names=[s.name for s in subject.samples],
            skipped=[asdict(s) for s in subject.skipped],
            full_steps=full,
            steps=subject.steps,
            frames=frames or 1,
            arguments={k: v for k, v in subject.arguments.items() if _plain(v)},
            seconds={k: round(v, 3) for k, v in self.setup.seconds.items()},
            notes=self.setup.notes,
            quality_only=self.setup.quality_only,
            unjudged=subject.unjudged,
            gpu_sensor=meter.gpu.missing,
            weight_bytes=_weight_bytes(modules),
            **work,
        )
        return meter

    def _sample(self, subject: Subject, meter: Meter, index: int, repeat: int) -> None:
        """Generate one sample, measured; its frames are kept of the first repeat."""
        sample = subject.samples[index]
        made, cost = self._generate(subject, meter, sample)
        finite = True
        if repeat == 0 and not (self.settings.only_timing or subject.unjudged):
            finite = save_frames(frames_path(self.out, self.name, sample.name), made)
        self.journal.add(
            event="run",
            method=self.name,
            sample=index,
            repeat=repeat,
            frames=len(made),
            finite=finite,
            **{k: round(v, 5) if v is not None else None for k, v in asdict(cost).items()},
        )

    def _generate(self, subject: Subject, meter: Meter, sample: Sample):
        def post(frames: torch.Tensor) -> torch.Tensor:
            for method in self.methods:
                frames = method.post(frames)
            return frames

        return meter.measure(lambda: subject.generate(sample), post)

    def _count(self, subject: Subject, modules: list[torch.nn.Module]) -> dict[str, object]:
        """MACs of one generation's denoiser calls, and of post-processing networks."""
        sample = subject.samples[0]
        before = [method.macs(subject) for method in self.methods]
        own = next((i for i, found in enumerate(before) if found is not None), None)
        if own is not None:
            made = subject.generate(sample)
            after = self.methods[own].macs(subject)
            first = before[own]
            assert after is not None
            assert first is not None
            macs, calls = after[0] - first[0], None
        else:
            with counting(modules) as counts:
                made = subject.generate(sample)
            macs, calls = float(sum(counts)), len(counts)
        networks = [n for m in self.methods if (n := getattr(m, "network", None)) is not None]
        with counting(networks) as counts:
            for method in self.methods:
                made = method.post(made)
        wait_for_device()
        return {"macs": macs, "denoiser_calls": calls, "post_macs": float(sum(counts))}


def _weight_bytes(modules: list[torch.nn.Module]) -> int:
    """Bytes of the denoisers' parameters as they are stored."""
    total = 0
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            total += _stored_bytes(tensor)
    return total


def _stored_bytes(tensor: torch.Tensor) -> int:
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return tensor.numel() * tensor.element_size()
    names, _ = flatten()
    return sum(_stored_bytes(getattr(tensor, name)) for name in names)


def _plain(value: object) -> bool:
    return isinstance(value, (int, float, str, bool))


def main() -> int:
    """Run one method; 0 also when it ended with a reason in the journal."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.filterwarnings("ignore", category=UserWarning)
    warnings.filterwarnings("ignore", category=FutureWarning)
    out, name = sys.argv[1:]
    Worker(Path(out), name).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
