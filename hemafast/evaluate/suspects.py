"""Labels that are probably wrong, from what a model says that has not seen them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels, Probabilities


def label_quality(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """How likely each label is right, (images,): 1 for surely right, 0 for surely wrong.

    It is the normalised margin of confident learning: half of 1 plus the probability of the label minus that of the
    likeliest other class (Northcutt et al. 2021, arXiv 1911.00068; `normalized_margin` of the package cleanlab).

    Args:
        labels: (images,), indices of the given classes.
        probabilities: (images, classes), rows that add up to 1, from models that did not learn from these labels.
    """
    rows = np.arange(len(labels))
    own, others = probabilities[rows, labels], probabilities.astype(np.float64, copy=True)
    others[rows, labels] = -1.0
    return np.asarray((own - others.max(axis=1) + 1) / 2)
