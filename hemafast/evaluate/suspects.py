"""Labels that are probably wrong, from what a model says that has not seen them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels, Probabilities


def label_quality(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """How likely each label is right, (images,): its probability, the self-confidence of confident learning.

    (Northcutt et al. 2021, arXiv 1911.00068; `self_confidence` of the package cleanlab.) `benchmarks/audit.py` compares
    it with other rankings.

    Args:
        labels: (images,), indices of the given classes.
        probabilities: (images, classes), rows that add up to 1, from models that did not learn from these labels.
    """
    return np.asarray(probabilities[np.arange(len(labels)), labels], dtype=np.float64)
