"""Documents as compare and evaluate write them, with small numbers."""

from __future__ import annotations

import json

import pytest
import torch
from ditcache.bench.compare.clips import save_clip


def spread(mean, width=0.1):
    return {
        "mean": mean, "low": mean - width, "high": mean + width, "median": mean, "p5": mean,
        "worst": mean,
    }  # fmt: skip


def row(name, seconds, *, plan=None, collapsed=None, quality_only=False):
    made = {
        "name": name, "title": f"title of {name}", "methods": name.split("+"), "status": "ok",
        "reason": "masks only" if quality_only else "", "quality_only": quality_only,
        "steps": 25, "frames": 4, "notes": ["a note"],
        "seconds_apart": {"load": 1.0}, "facts": {},
        "quality": {
            "samples": 3, "psnr": spread(30.0), "ssim": spread(0.9, 0.02), "distance": spread(0.1),
            "image_sim": spread(0.8), "temporal_ssim": spread(0.7), "temporal_distance": None,
            "motion": spread(0.05, 0.01), "collapsed": collapsed or {},
        },
    }  # fmt: skip
    if plan:
        made["facts"] = {"plan": plan, "steps": 25, "forecaster": "edf"}
    if not quality_only:
        made |= {
            "seconds": seconds, "seconds_spread": 0.05, "seconds_per_frame": seconds / 4,
            "speedup": spread(8 / seconds), "loop_speedup": spread(8 / seconds),
            "cpu_speedup": spread(8 / seconds), "macs_reduction": 8 / seconds,
            "peak_bytes": 2**28, "peak_over_baseline": -(2**20), "frames_per_second": 4 / seconds,
            "macs": seconds * 1e9, "weight_bytes": None, "decode_seconds": 0.1, "post_seconds": 0.0,
            "reserved_bytes": None, "temperature": None, "watts": None,
        }  # fmt: skip
    return made


@pytest.fixture
def results(tmp_path):
    """A folder with one comparison of three methods on two samples."""
    rows = [
        row("M0", 8.0),
        row("C3", 2.0, plan=[0, 1, 5, 9]),
        row("C3+M1", 8 / 3),
        row("M5", 1.0, collapsed={"black": 3}, quality_only=True),
        {
            "name": "M4", "title": "distilled", "methods": ["M4"], "status": "failed",
            "reason": "needs <weights>",
        },
    ]  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    clips = []
    for index in range(2):
        methods = {
            name: save_clip(
                tmp_path / "clips", name, index, torch.rand(4, 3, 16, 16, generator=draw)
            )
            for name in ("M0", "C3")
        }
        clips.append({"sample": f"sample {index}", "seed": index, "methods": methods})
    document = {
        "what": "ditcache compare", "title": "tiny", "model": "tiny", "environment": {},
        "measures": {"distance": "EffLite0-distance", "image_sim": "EffLite0-image-sim",
                     "memory": "resident set"},
        "rows": rows, "clips": clips, "gpu_sensor": "NVML: no driver",
        "combinations": [
            {"name": "C3+M1", "status": "ok", "reason": "", "speedup": 3.0,
             "speedup_singles": [4.0, 1.0], "speedup_product": 4.0, "speedup_over_product": 0.75},
        ],
        "recommendations": [
            {"goal": "balanced", "rule": "fastest", "name": "C3", "speedup": 4.0,
             "peak_bytes": 2**28, "ssim": 0.9, "psnr": 30.0, "distance": 0.1,
             "image_sim_change": None},
            {"goal": "low memory", "rule": "smallest", "name": None},
        ],
        "against_singles": [],
    }  # fmt: skip
    (tmp_path / "compare.json").write_text(json.dumps(document))
    return tmp_path
