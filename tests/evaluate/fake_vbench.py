"""A stand-in for the package `vbench` 0.1.5: its signatures, files and refusals, no networks.

A video's number is a hash of its bytes; `FAKE_VBENCH_FAILS` names dimensions whose weights "cannot
be downloaded"; every dimension that runs adds a line to `calls.txt` in the output folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

CACHE_DIR = "/absent"
NOT_CUSTOM = {
    "object_class", "multiple_objects", "scene", "appearance_style", "color",
    "spatial_relationship",
}  # fmt: skip
KNOWN = NOT_CUSTOM | {
    "subject_consistency", "background_consistency", "aesthetic_quality", "imaging_quality",
    "temporal_style", "overall_consistency", "human_action", "temporal_flickering",
    "motion_smoothness", "dynamic_degree",
}  # fmt: skip


def score(path):
    return int(hashlib.sha256(Path(path).read_bytes()).hexdigest()[:6], 16) / 16**6


class VBench:
    def __init__(self, device, full_info_dir, output_path):
        self.device, self.full_info_dir, self.output_path = device, full_info_dir, output_path
        os.makedirs(output_path, exist_ok=True)

    def evaluate(
        self, videos_path, name, prompt_list=(), dimension_list=None, local=False,
        read_frame=False, mode="vbench_standard", **kwargs,
    ):  # fmt: skip
        found = {}
        for dimension in dimension_list:
            assert dimension in KNOWN
            if dimension in os.environ.get("FAKE_VBENCH_FAILS", "").split(","):
                raise subprocess.CalledProcessError(4, ["wget", f"https://x/{dimension}.pth"])
            with open(f"{self.output_path}/calls.txt", "a") as log:
                log.write(f"{dimension} {mode}\n")
            paths = self._videos(videos_path, prompt_list, dimension, mode)
            each = [{"video_path": p, "video_results": score(p)} for p in paths]
            found[dimension] = [sum(map(score, paths)) / len(paths), each]
        with open(f"{self.output_path}/{name}_eval_results.json", "w") as file:
            json.dump(found, file)

    def _videos(self, folder, prompts, dimension, mode):
        names = [n for n in sorted(os.listdir(folder)) if n.endswith(".mp4")]
        if mode == "custom_input":
            assert dimension not in NOT_CUSTOM
            assert set(names) == set(prompts)
            return [f"{folder}/{n}" for n in names]
        entries = json.loads(Path(self.full_info_dir).read_text())
        wanted = [e["prompt_en"] for e in entries if dimension in e["dimension"]]
        files = [f"{p}-{i}.mp4" for p in wanted for i in range(5)]
        missing = [f for f in files if f not in names]
        assert not missing, f"This required video is not found: {missing[0]}"
        return [f"{folder}/{n}" for n in files]


def static_filter(args):
    """Keep the first five videos of each prompt of temporal flickering."""
    target = Path(args.result_path) / "filtered_videos"
    target.mkdir(parents=True, exist_ok=True)
    kept = {}
    for path in sorted(Path(args.videos_path).glob("*.mp4")):
        prompt = re.sub(r"-\d+$", "", path.stem)
        kept.setdefault(prompt, []).append(path)
    for prompt, paths in kept.items():
        for i, path in enumerate(paths[:5]):
            (target / f"{prompt}-{i}.mp4").write_bytes(path.read_bytes())


def install(site, suite):
    """Write the package into a folder of importable things, with this list of prompts."""
    package = site / "vbench"
    (package / "cli").mkdir(parents=True)
    text = Path(__file__).read_text()
    (package / "__init__.py").write_text(text)
    (package / "utils.py").write_text("from . import CACHE_DIR\n")
    (package / "cli" / "__init__.py").write_text("")
    (package / "cli" / "static_filter.py").write_text("from .. import static_filter\n")
    (package / "VBench_full_info.json").write_text(json.dumps(suite))
    about = site / "vbench-0.1.5.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vbench\nVersion: 0.1.5\n")
