"""Which digit a generated picture shows, by a small classifier trained on the real ones."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from ditcache.models.data import digits
from sklearn.model_selection import cross_val_score
from sklearn.svm import SVC
from torch import Tensor


@functools.cache
def _judge() -> Any:
    images, labels = digits()
    return SVC(C=10, gamma="scale").fit(images.flatten(1).numpy(), labels.numpy())


def right_class(pictures: Tensor, labels: list[int]) -> npt.NDArray[np.float64]:
    """1 for each picture [N, 3, 8, 8] in [0, 1] that is taken for its class, else 0."""
    said = _judge().predict((pictures[:, 0].flatten(1) * 2 - 1).numpy())
    return (said == np.asarray(labels)).astype(np.float64)


def real_accuracy() -> float:
    """Return the classifier's own accuracy on real digits, by five-fold cross-validation."""
    images, labels = digits()
    judge = SVC(C=10, gamma="scale")
    return float(cross_val_score(judge, images.flatten(1).numpy(), labels.numpy(), cv=5).mean())
