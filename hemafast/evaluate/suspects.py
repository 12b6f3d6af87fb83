"""Labels that are probably wrong, from what a model says that has not seen them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels
from hemafast.logistic import Matrix

_USUAL = 0.5  # of the median margin of a class


def label_quality(labels: Labels, scores: Matrix) -> npt.NDArray[np.float64]:
    """How likely each label is right, (images,): its margin, less half of what is usual for cells of this label.

    The margin is the score of the label less that of the likeliest other class. Where a class is hard to tell, all its
    margins are small, and would fill the list; so what is usual counts, as in Northcutt et al. 2021 (arXiv 1911.00068).
    Half, because it is known badly of a small class; the median, because wrong labels move it little.
    `benchmarks/audit.py` compares it with other rankings.

    Args:
        labels: (images,), indices of the given classes.
        scores: (images, classes), rows that add up to 1, from models that did not learn from these labels.
    """
    rows = np.arange(len(labels))
    margins = np.asarray(scores[rows, labels] - scores[rows, likeliest_other(labels, scores)], dtype=np.float64)
    usual = {label: np.median(margins[labels == label]) for label in np.unique(labels)}
    return margins - _USUAL * np.array([usual[label] for label in labels])


def likeliest_other(labels: Labels, scores: Matrix) -> Labels:
    """(images,): the class other than its label that an image most probably has, by scores (images, classes)."""
    others = scores.astype(np.float64, copy=True)
    others[np.arange(len(labels)), labels] = -np.inf
    return np.asarray(others.argmax(axis=1), dtype=np.int64)
