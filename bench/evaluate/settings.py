"""What one evaluation runs."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..compare.subjects import Request

UNCACHED = "uncached"


@dataclass(frozen=True)
class Settings:
    """`count` samples in blocks of `block`; sample i has prompt i (cyclically) and seed + i.

    `plans` are paths of plans; `speedups` plans to be made, each on calibration prompts. `weights`
    name scorers' weights by role: "clip", "inception", "aesthetic", "image-reward", "lpips".
    `vbench` is the interpreter that imports VBench, if it is not this one.
    """

    request: Request
    count: int
    block: int = 8
    plans: tuple[str, ...] = ()
    speedups: tuple[float, ...] = ()
    inner: str = "eager"
    reference: str | None = None
    weights: dict[str, str] = field(default_factory=dict[str, str])
    vbench: str | None = None

    @property
    def blocks(self) -> int:
        return -(-self.count // self.block)

    def indices(self, block: int) -> range:
        """Samples of a block; the last block may be short."""
        return range(block * self.block, min((block + 1) * self.block, self.count))

    def key(self, fingerprint: str, prompts: list[str], plans: dict[str, str]) -> str:
        """Hash of what decides a block's content."""
        about: dict[str, Any] = asdict(self)
        for irrelevant in ("count", "reference", "plans", "speedups", "vbench"):
            about.pop(irrelevant)
        about |= {"fingerprint": fingerprint, "prompts": prompts, "plan_texts": plans}
        return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Ranks:
    """Which process this is, of how many, as torchrun and accelerate tell by environment."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @staticmethod
    def here() -> Ranks:
        read = {name: int(os.environ.get(name, default)) for name, default in _ENVIRONMENT.items()}
        return Ranks(read["RANK"], read["WORLD_SIZE"], read["LOCAL_RANK"])

    def mine(self, blocks: int) -> range:
        """Blocks of this process."""
        return range(self.rank, blocks, self.world)

    def meet(self) -> None:
        """Wait for all processes (gloo: what is waited for is on disk, not on a GPU)."""
        if self.world == 1:
            return
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("gloo", timeout=timedelta(days=7))
        dist.barrier()


_ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def write_atomically(path: Path, text: str) -> None:
    """Write at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(text)
    part.replace(path)
