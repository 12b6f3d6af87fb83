"""Labels that are probably wrong, from what a model says that has not seen them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels
from hemafast.logistic import Matrix


def label_quality(labels: Labels, scores: Matrix) -> npt.NDArray[np.float64]:
    """How likely each label is right, (images,): its score less that of the likeliest other class.

    `benchmarks/audit.py` compares it with other rankings.

    Args:
        labels: (images,), indices of the given classes.
        scores: (images, classes), rows that add up to 1, from models that did not learn from these labels.
    """
    rows, others = np.arange(len(labels)), scores.astype(np.float64, copy=True)
    others[rows, labels] = -np.inf
    return np.asarray(scores[rows, labels] - others.max(axis=1), dtype=np.float64)
