"""Labels that are probably wrong, from what a model says that has not seen them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels, Probabilities


def label_quality(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """How likely each label is right, (images,): 1 for surely right, 0 for surely wrong.

    It is the probability of the label as a share of itself and that of the likeliest other class. Between two classes
    that are hard to tell apart, both are small for other reasons than a wrong label; the share is not. Confident
    learning (Northcutt et al. 2021, arXiv 1911.00068) ranks by the probability alone or by the difference of the two,
    which found fewer labels that were changed on purpose.

    Args:
        labels: (images,), indices of the given classes.
        probabilities: (images, classes), rows that add up to 1, from models that did not learn from these labels.
    """
    rows = np.arange(len(labels))
    own, others = probabilities[rows, labels].astype(np.float64), probabilities.astype(np.float64, copy=True)
    others[rows, labels] = 0.0
    both = own + others.max(axis=1)
    return np.asarray(np.where(both > 0, own / np.where(both > 0, both, 1), 0.0))
