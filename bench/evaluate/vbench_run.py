"""VBench's package, dimension by dimension: `PYTHON vbench_run.py JOB.json`.

A script of its own that needs the standard library and `vbench` alone: VBench pins old versions of
what ditcache needs in new ones (transformers, numpy), so it may have to live in an environment of
its own. JOB has `device`, `full_info` (VBench's list of prompts), `out` (folder) and `dimensions`,
each with `name`, `mode` (of `VBench.evaluate`), `videos` (folder), `prompts` (by file name, or
none) and `still` (only static videos count). VBench writes `OUT/NAME_eval_results.json`; why a
dimension has none is in `OUT/failures.json`.
"""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

FAILURES = "failures.json"


def run(job: dict[str, Any]) -> dict[str, str]:
    """Run all dimensions; gives what failed, by name, with the reason."""
    out = Path(job["out"])
    out.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    for dimension in job["dimensions"]:
        name = dimension["name"]
        try:
            _one(dimension, job, out)
        except (Exception, SystemExit) as error:
            traceback.print_exc()
            said = " ".join(str(error).split())[:300]
            failures[name] = f"{type(error).__name__}: {said}"
        (out / FAILURES).write_text(json.dumps(failures))
    return failures


def _one(dimension: dict[str, Any], job: dict[str, Any], out: Path) -> None:
    import torch
    from vbench import VBench  # pyright: ignore[reportMissingImports]

    videos = dimension["videos"]
    if dimension["still"]:
        videos = _still(videos, out / "still")
    judge = VBench(torch.device(job["device"]), job["full_info"], str(out))
    judge.evaluate(
        videos_path=videos,
        name=dimension["name"],
        prompt_list=dimension["prompts"],
        dimension_list=[dimension["name"]],
        mode=dimension["mode"],
    )


def _still(videos: str, out: Path) -> str:
    """Folder with the videos that VBench's own filter finds static, five a prompt (needs CUDA)."""
    from argparse import Namespace

    from vbench.cli.static_filter import static_filter  # pyright: ignore[reportMissingImports]
    from vbench.utils import CACHE_DIR  # pyright: ignore[reportMissingImports]

    static_filter(
        Namespace(
            model=f"{CACHE_DIR}/raft_model/models/raft-things.pth",
            videos_path=videos,
            result_path=str(out),
            store_name="filtered_static_video.json",
            filter_scope="temporal_flickering",
            small=False,
            mixed_precision=False,
            alternate_corr=False,
        )
    )
    return str(out / "filtered_videos")


if __name__ == "__main__":
    # Python puts this folder first: what lies in it is not what VBench means by these names.
    sys.path.pop(0)
    run(json.loads(Path(sys.argv[1]).read_text()))
