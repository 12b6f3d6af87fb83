"""The scores shown during training, from a confusion matrix: rows are true classes, columns predicted ones.

All other scores and intervals are in `evaluate.metrics`.
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
    """F1 of each class, (..., classes), from confusion matrices (..., classes, classes).

    A class that is never predicted right scores 0. A class without images is nan; images predicted as it count against
    their true class.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    return f1_of(hits, confusion.sum(axis=-1), confusion.sum(axis=-2))


def f1_of(hits: Counts, actual: Counts, predicted: Counts) -> npt.NDArray[np.float64]:
    """`per_class_f1` from images of each class (..., classes): predicted right, all, and all predicted as it."""
    f1: npt.NDArray[np.float64] = 2 * hits / np.maximum(actual + predicted, 1)
    return np.where(actual > 0, f1, np.nan)


def macro_f1(confusion: Counts) -> float:
    """Mean F1 over the classes that have images; nan without images."""
    f1 = per_class_f1(confusion)
    return float(np.nanmean(f1)) if np.isfinite(f1).any() else float("nan")


def accuracy(confusion: Counts) -> float:
    """Share of images with the right prediction; nan without images."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


def with_pooled(domains: Mapping[str, Part], pooled: Part) -> dict[str, Part]:
    """The rows of a table of scores: each domain, then `pooled` if there are several domains."""
    return {**domains, "pooled": pooled} if len(domains) > 1 else dict(domains)


def count_confusion(actual: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> Confusion:
    """Confusion matrix (classes, classes) of class indices (n,) and (n,)."""
    cells = np.bincount(actual * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)
