"""The few scores that training shows, from a confusion matrix: rows are true classes, columns predicted ones.

`evaluate.metrics` has the others, and their intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Confusion = npt.NDArray[np.int64]
Counts = npt.NDArray[np.integer] | npt.NDArray[np.floating]

Part = TypeVar("Part")


def per_class_f1(confusion: Counts) -> npt.NDArray[np.float64]:
    """F1 of each class, (..., classes) for confusion matrices (..., classes, classes); nan where a class has no image.

    A class that exists but is never found scores 0. A class without images has no F1 of its own; what is wrongly
    called by its name counts against the true class.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1: npt.NDArray[np.float64] = 2 * hits / np.maximum(actual + predicted, 1)
    return np.where(actual > 0, f1, np.nan)


def macro_f1(confusion: Counts) -> float:
    """Mean F1 over the classes that have images; nan if there are none."""
    f1 = per_class_f1(confusion)
    return float(np.nanmean(f1)) if np.isfinite(f1).any() else float("nan")


def accuracy(confusion: Counts) -> float:
    """Share of images that are called by their true class; nan if there are none."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


def with_pooled(domains: Mapping[str, Part], pooled: Part) -> dict[str, Part]:
    """What there is to show: each domain, and all of them pooled where there are several."""
    return {**domains, "pooled": pooled} if len(domains) > 1 else dict(domains)


def count_confusion(actual: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> Confusion:
    """Confusion matrix (classes, classes) of class indices (n,) and (n,)."""
    cells = np.bincount(actual * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)
