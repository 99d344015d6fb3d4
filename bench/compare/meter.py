"""What one generation costs: seconds, memory, MACs, heat."""

from __future__ import annotations

import resource
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def wait_for_device() -> None:
    """Wait until the GPU has done what it was given, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Cost:
    """One generation. Seconds are walls; `cpu_seconds` is the processor time of all threads."""

    seconds: float = 0.0
    decode_seconds: float = 0.0
    post_seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    reserved_bytes: int | None = None
    temperature: float | None = None
    watts: float | None = None


class Meter:
    """Measures generations of one pipeline; decoding is clocked inside it."""

    def __init__(self, pipeline: Any) -> None:
        self._decode = 0.0
        self.gpu = GpuSensor()
        vae = getattr(pipeline, "vae", None)
        if vae is not None:
            plain = vae.decode

            def decode(*args: Any, **kwargs: Any) -> Any:
                wait_for_device()
                started = time.perf_counter()
                try:
                    return plain(*args, **kwargs)
                finally:
                    wait_for_device()
                    self._decode += time.perf_counter() - started

            vae.decode = decode

    def measure(
        self, generate: Callable[[], torch.Tensor], post: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, Cost]:
        """Run both, in this order; the frames and what they cost together."""
        self._decode = 0.0
        reset_peak()
        with self.gpu.sampling() as felt:
            wait_for_device()
            cpu, started = time.process_time(), time.perf_counter()
            frames = generate()
            wait_for_device()
            middle = time.perf_counter()
            frames = post(frames)
            wait_for_device()
            ended = time.perf_counter()
            cost = Cost(
                seconds=ended - started,
                decode_seconds=self._decode,
                post_seconds=ended - middle,
                cpu_seconds=time.process_time() - cpu,
            )
        cost.peak_bytes, cost.reserved_bytes = peak()
        cost.temperature, cost.watts = felt.highest(), felt.mean_watts()
        return frames, cost


def reset_peak() -> None:
    """Start a new peak: CUDA's counters, or the resident set's high-water mark (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):
            _CLEAR.write_text("5")


def peak() -> tuple[int, int | None]:
    """Peak bytes since `reset_peak`: (allocated, reserved) on CUDA, (resident set, None) else.

    Where the high-water mark cannot be reset it is that of the whole process.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    with suppress(OSError):
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024, None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, None


@contextmanager
def counting(modules: list[nn.Module]) -> Generator[list[int]]:
    """Count the MACs of every call of these modules; the list grows by one number a call.

    Multiplications and additions are one operation: half of what torch's counter says. Compiled
    modules run uncompiled inside, because the counter does not see into compiled code, and
    attention by its plain formula, because it does not know the CPU's fused one.
    """
    counts: list[int] = []
    plain = [module.forward for module in modules]

    def counted(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with FlopCounterMode(display=False) as counter:
                result = forward(*args, **kwargs)
            counts.append(counter.get_total_flops() // 2)
            return result

        return run

    for module, forward in zip(modules, plain, strict=True):
        module.forward = counted(forward)
    try:
        with torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
            yield counts
    finally:
        for module in modules:
            del module.forward


@dataclass
class Felt:
    """What a sensor saw during one generation."""

    degrees: list[float] = field(default_factory=list[float])
    milliwatts: list[float] = field(default_factory=list[float])

    def highest(self) -> float | None:
        """Degrees Celsius."""
        return max(self.degrees, default=None)

    def mean_watts(self) -> float | None:
        return sum(self.milliwatts) / len(self.milliwatts) / 1e3 if self.milliwatts else None


class GpuSensor:
    """NVML's temperature and power of the current CUDA device; `missing` says why there is none."""

    def __init__(self, period: float = 0.1) -> None:
        self.period = period
        self.missing: str | None = None
        self._handle: Any = None
        try:
            import pynvml  # pyright: ignore[reportMissingImports]

            pynvml.nvmlInit()
            index = torch.cuda.current_device() if torch.cuda.is_available() else 0
            self._handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        except ImportError:
            self.missing = "NVML needs the package nvidia-ml-py"
        except Exception as error:  # NVMLError has a subclass for each code
            self.missing = f"NVML: {error}"

    @contextmanager
    def sampling(self) -> Generator[Felt]:
        """Sample in the background while the block runs."""
        felt = Felt()
        if self._handle is None:
            yield felt
            return
        import pynvml  # pyright: ignore[reportMissingImports]

        done = threading.Event()

        def sample() -> None:
            while True:
                with suppress(pynvml.NVMLError):
                    felt.degrees.append(pynvml.nvmlDeviceGetTemperature(self._handle, 0))
                    felt.milliwatts.append(pynvml.nvmlDeviceGetPowerUsage(self._handle))
                if done.wait(self.period):
                    return

        thread = threading.Thread(target=sample, daemon=True)
        thread.start()
        try:
            yield felt
        finally:
            done.set()
            thread.join()
