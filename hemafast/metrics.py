"""Scores from a confusion matrix: rows are true classes, columns predicted ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

Confusion = npt.NDArray[np.int64]

Part = TypeVar("Part")

_RESAMPLES = 1000


def per_class_f1(confusion: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
    """F1 of each class, (..., classes) for confusion matrices (..., classes, classes); nan where a class has no image.

    A class that exists but is never found scores 0. A class without images has no F1 of its own; what is wrongly
    called by its name counts against the true class.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1).astype(np.float64)
    actual, predicted = confusion.sum(axis=-1), confusion.sum(axis=-2)
    f1: npt.NDArray[np.float64] = 2 * hits / np.maximum(actual + predicted, 1)
    return np.where(actual > 0, f1, np.nan)


def macro_f1(confusion: npt.NDArray[np.integer]) -> float:
    """Mean F1 over the classes that have images; nan if there are none."""
    f1 = per_class_f1(confusion)
    return float(np.nanmean(f1)) if np.isfinite(f1).any() else float("nan")


def accuracy(confusion: npt.NDArray[np.integer]) -> float:
    """Share of images that are called by their true class; nan if there are none."""
    total = int(confusion.sum())
    return float(np.trace(confusion)) / total if total else float("nan")


def macro_f1_interval(confusion: Confusion, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the macro-F1 (1,000 resamples of the images, percentile method).

    F1 depends on the images only through their counts, so a resample of the images is a multinomial draw of the cells.
    Classes that a resample happens to miss are left out of its mean.
    """
    total = int(confusion.sum())
    if not total:
        return float("nan"), float("nan")
    draws = np.random.default_rng(seed).multinomial(total, confusion.ravel() / total, size=_RESAMPLES)
    scores = np.nanmean(per_class_f1(draws.reshape(_RESAMPLES, *confusion.shape)), axis=-1)
    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class ClassScore:
    """Scores of one class; precision is None if nothing was called by its name."""

    images: int
    precision: float | None
    recall: float
    f1: float


def class_scores(confusion: Confusion, classes: tuple[str, ...]) -> dict[str, ClassScore]:
    """Scores of each class that has images."""
    f1, actual, predicted = per_class_f1(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    return {
        name: ClassScore(
            images=int(actual[i]),
            precision=float(confusion[i, i] / predicted[i]) if predicted[i] else None,
            recall=float(confusion[i, i] / actual[i]),
            f1=float(f1[i]),
        )
        for i, name in enumerate(classes)
        if actual[i]
    }


def with_pooled(domains: Mapping[str, Part], pooled: Part) -> dict[str, Part]:
    """What there is to show: each domain, and all of them pooled where there are several."""
    return {**domains, "pooled": pooled} if len(domains) > 1 else dict(domains)


def count_confusion(actual: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64], classes: int) -> Confusion:
    """Confusion matrix (classes, classes) of class indices (n,) and (n,)."""
    cells = np.bincount(actual * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes).astype(np.int64)
