"""The whole comparison: each method in its own process, then the frames are judged."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .combine import Refused, together
from .frames import frames_path, load_frames, slug
from .judge import Looks, judge
from .methods import BASELINE
from .settings import JUDGED, UNUSABLE, Journal, Settings
from .subjects import Subject, SubjectError, load

POLL_SECONDS = 0.5
# What a process gets beside this one's environment: one Inductor worker, no progress bars.
_CHILD = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


class Study:
    """One comparison in a work folder; running it again goes on where it stopped."""

    def __init__(self, settings: Settings, work: Path, console: Console) -> None:
        self.settings = settings
        self.work = work
        self.console = console
        settings.save(work)
        path = work / settings.journal
        self.journal = Journal(path, settings.key())
        self.judged = Journal(work / JUDGED, settings.key())
        ended = {line["method"] for e in ("finished", "failed") for line in self.journal.of(e)}
        if settings.only_timing and ended >= {*settings.names}:
            self.journal.drop(lambda _: False)  # all is there: measure it once more
        # What could not run is tried again: weights may be there by now.
        self.journal.drop(lambda line: line["event"] not in ("failed", UNUSABLE))

    def run(self) -> None:
        """Generate what is missing, then judge it.

        Raises:
            SubjectError: a process found that the model or its inputs cannot be used at all.

        """
        columns = (
            TextColumn("{task.description:>14}"),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task("methods", total=len(self.settings.names))
            for name in self.settings.names:
                self._generate(name, progress)
                progress.advance(task)
            if not (self.settings.only_timing or self.unjudged):
                self._judge(progress)

    @property
    def unjudged(self) -> str:
        """Why nothing of this model is judged; "" where all is."""
        known = self.journal.of("prepared")
        return known[0].get("unjudged", "") if known else ""

    def _generate(self, name: str, progress: Progress) -> None:
        try:
            together(name)
        except Refused as refused:
            self.journal.add(event="failed", method=name, reason=str(refused), refused=True)
            return
        log = self.work / "logs" / f"{slug(name)}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        task = progress.add_task(name, total=None)
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.worker", str(self.work), name],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | _CHILD,
            )
            try:
                while process.poll() is None:
                    time.sleep(POLL_SECONDS)
                    self._show(name, progress, task)
            except BaseException:
                process.terminate()
                process.wait()
                raise
        self._reread()
        progress.remove_task(task)
        for line in self.journal.of(UNUSABLE, name):
            raise SubjectError(line["reason"])
        ended = self.journal.of("failed", name)
        if process.returncode and not ended:
            said = (log.read_text().strip().splitlines() or ["nothing said"])[-1]
            self.journal.add(
                event="failed", method=name, reason=f"{_how(process.returncode)}: {said[:200]}"
            )

    def _show(self, name: str, progress: Progress, task: Any) -> None:
        self._reread()
        known = self.journal.of("prepared", name)
        if known:
            timed = min(self.settings.timing_samples, known[-1]["samples"])
            total = timed * self.settings.repeats
            if not (self.settings.only_timing or self.unjudged):
                total += known[-1]["samples"] - timed
            progress.update(task, total=total, completed=len(self.journal.of("run", name)))

    def _reread(self) -> None:
        self.journal = Journal(self.journal.path, self.journal.key)

    def _judge(self, progress: Progress) -> None:
        """Judge sample by sample, so that the baseline's frames are looked at once."""
        runs = {
            (line["method"], line["sample"]): line
            for line in self.journal.of("run")
            if line["repeat"] == 0
        }
        done = {(line["method"], line["sample"]) for line in self.judged.of("judged")}
        todo = [pair for pair in runs if pair not in done and pair[0] in self.settings.names]
        samples = sorted({sample for _, sample in todo})
        if not samples:
            return
        subject = load(self.settings.request)
        task = progress.add_task("judge", total=len(todo))
        for index in samples:
            if (BASELINE, index) not in runs:
                continue
            reference = self._looks(BASELINE, subject, index)
            for method, sample in todo:
                if sample != index:
                    continue
                made = reference if method == BASELINE else self._looks(method, subject, index)
                found = judge(
                    made,
                    reference,
                    subject.samples[index].image,
                    finite=runs[method, index]["finite"],
                )
                self.judged.add(event="judged", method=method, sample=index, **found)
                progress.advance(task)

    def _looks(self, method: str, subject: Subject, index: int) -> Looks:
        return Looks.of(load_frames(frames_path(self.work, method, subject.samples[index].name)))


def _how(code: int) -> str:
    if code < 0:
        return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with code {code}"
