"""VBench's scores from its dimensions (Huang et al., CVPR 2024).

Ranges and weights are those of `scripts/constant.py` of github.com/Vchitect/VBench, the formulas
those of `scripts/cal_final_score.py` and of "How to Calculate Total Score" in its README.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

PREFIX = "VBench"
PER_PROMPT, PER_STILL_PROMPT, STILL = 5, 25, "temporal_flickering"
"""Videos of each prompt (prompts/README.md there); more where a filter takes some away."""
QUALITY_WEIGHT, SEMANTIC_WEIGHT = 4.0, 1.0
QUALITY_SCORE, SEMANTIC_SCORE, TOTAL = (f"{PREFIX} {n}" for n in ("quality", "semantic", "total"))


@dataclass(frozen=True)
class Scale:
    """What of a dimension's range counts as 0 and as 1, and its weight in the mean."""

    low: float = 0.0
    high: float = 1.0
    weight: float = 1.0


QUALITY = {
    "subject_consistency": Scale(0.1462),
    "background_consistency": Scale(0.2615),
    # Before temporal flickering, whose filter uses the same downloaded network.
    "dynamic_degree": Scale(weight=0.5),
    "temporal_flickering": Scale(0.6293),
    "motion_smoothness": Scale(0.706, 0.9975),
    "aesthetic_quality": Scale(),
    "imaging_quality": Scale(),
}
SEMANTIC = {
    "object_class": Scale(),
    "multiple_objects": Scale(),
    "human_action": Scale(),
    "color": Scale(),
    "spatial_relationship": Scale(),
    "scene": Scale(high=0.8222),
    "appearance_style": Scale(0.0009, 0.2855),
    "temporal_style": Scale(high=0.364),
    "overall_consistency": Scale(high=0.364),
}


def needed(dimension: str) -> int:
    """Videos of each of a dimension's prompts."""
    return PER_STILL_PROMPT if dimension == STILL else PER_PROMPT


def totals(dimensions: Mapping[str, float]) -> dict[str, float]:
    """Quality, semantic and total score, those of them whose dimensions are all there."""
    found: dict[str, float] = {}
    for name, scales in ((QUALITY_SCORE, QUALITY), (SEMANTIC_SCORE, SEMANTIC)):
        if scales.keys() <= dimensions.keys():
            found[name] = _mean(dimensions, scales)
    if len(found) == 2:
        both = QUALITY_WEIGHT * found[QUALITY_SCORE] + SEMANTIC_WEIGHT * found[SEMANTIC_SCORE]
        found[TOTAL] = both / (QUALITY_WEIGHT + SEMANTIC_WEIGHT)
    return found


def _mean(values: Mapping[str, float], scales: Mapping[str, Scale]) -> float:
    total = sum(
        scale.weight * (values[name] - scale.low) / (scale.high - scale.low)
        for name, scale in scales.items()
    )
    return total / sum(scale.weight for scale in scales.values())
