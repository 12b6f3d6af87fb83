"""Scores from classes and probabilities, for the images and all their resamples at once.

Every function takes weights (images, k): how often each image counts in each of k resamples; a column of ones is the
images themselves. Definitions are scikit-learn's. Means over classes leave out classes without images.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import RESAMPLES, Weights, resample
from hemafast.metrics import f1_of

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating[Any]]
Scores = npt.NDArray[np.float64]

BINS = 15
"""Equal bins of confidence for the calibration error, as in Guo et al. 2017 (arXiv 1706.04599)."""

_LEAST = float(np.finfo(np.float64).eps)  # scikit-learn's log loss clips probabilities here


@dataclass(frozen=True)  # without slots, so that sums are kept
class Confusions:
    """Confusion matrices of k resamples, by the cells that hold images: of a thousand classes, few of a million do."""

    actual: Labels
    """(cells,): the true class of a cell."""
    predicted: Labels
    """(cells,): what its images were taken for."""
    counts: Scores
    """(k, cells): its images."""
    classes: int

    @cached_property
    def of_actual(self) -> Scores:
        """Images by true class, (k, classes)."""
        return self._by(self.actual, self.counts)

    @cached_property
    def of_predicted(self) -> Scores:
        """Images by predicted class, (k, classes)."""
        return self._by(self.predicted, self.counts)

    @cached_property
    def hits(self) -> Scores:
        """Images predicted right by class, (k, classes)."""
        right = self.actual == self.predicted
        return self._by(self.actual[right], self.counts[:, right])

    def first(self) -> Labels:
        """The whole matrix (classes, classes) of the first column of weights: rows are true classes."""
        matrix = np.zeros((self.classes, self.classes), np.int64)
        np.add.at(matrix, (self.actual, self.predicted), self.counts[0].astype(np.int64))
        return matrix

    def folded(self, group_of: Labels, groups: int) -> Confusions:
        """The same between groups of classes; `group_of` (classes,) names the group of each."""
        return Confusions(group_of[self.actual], group_of[self.predicted], self.counts, groups)

    def among(self, kept: npt.NDArray[np.bool_]) -> Confusions:
        """The images of the kept classes (classes,), whatever they were taken for."""
        cells = kept[self.actual]
        return Confusions(self.actual[cells], self.predicted[cells], self.counts[:, cells], self.classes)

    def _by(self, classes: Labels, counts: Scores) -> Scores:
        return _sum_by(classes, counts.T, self.classes).T


def confusions(labels: Labels, predicted: Labels, weights: Weights, classes: int) -> Confusions:
    """Confusion matrices of class indices (images,) and (images,)."""
    cells, cell_of = np.unique(labels * classes + predicted, return_inverse=True)
    return Confusions(cells // classes, cells % classes, _sum_by(cell_of, weights, len(cells)).T, classes)


def count_scores(confusion: Confusions) -> dict[str, Scores]:
    """Scores (k,) that depend on confusion matrices alone."""
    right, actual, predicted = confusion.hits, confusion.of_actual, confusion.of_predicted
    images, hits = actual.sum(axis=1), right.sum(axis=1)
    recall, f1 = _divide(right, actual), f1_of(right, actual, predicted)
    chance = (actual * predicted).sum(axis=1)
    spread = np.sqrt((images**2 - (predicted**2).sum(axis=1)) * (images**2 - (actual**2).sum(axis=1)))
    accuracy = _divide(hits, images)
    return {
        "accuracy": accuracy,
        "balanced_accuracy": _mean(recall),
        "macro_f1": _mean(f1),
        "micro_f1": accuracy,  # equal if every image has one label and one answer
        "weighted_f1": _divide(np.nansum(f1 * actual, axis=1), images),
        "matthews": np.where(images > 0, np.nan_to_num(_divide(hits * images - chance, spread)), np.nan),
        "kappa": _divide(hits * images - chance, images**2 - chance),
    }


def probability_scores(labels: Labels, probabilities: Probabilities, weights: Weights) -> dict[str, Scores]:
    """Scores (k,) of probabilities (images, classes): top-2 accuracy, log loss, expected calibration error."""
    images = weights.sum(axis=0, dtype=np.float64)
    rows = np.arange(len(labels))
    losses = -np.log(np.clip(probabilities[rows, labels], _LEAST, 1))
    # Of equal probabilities the last comes first, as in scikit-learn.
    ranked = np.argsort(probabilities, axis=1, kind="stable")[:, ::-1]
    second = (ranked[:, :2] == labels[:, None]).any(axis=1)
    return {
        "top2_accuracy": _divide(second.astype(np.float64) @ weights, images),
        "log_loss": _divide(losses.astype(np.float64) @ weights, images),
        "ece": _calibration_error(labels, probabilities, weights),
    }


def auroc(labels: Labels, scores: Probabilities, weights: Weights) -> Scores:
    """Area under the ROC curve of each class against the rest, (k, classes), of scores (images, classes).

    It is the share of pairs in the right order, where ties count half (Mann and Whitney 1947). nan if a class has no
    images, or all of them.
    """
    return np.stack([_area(labels == index, scores[:, index], weights) for index in range(scores.shape[1])], axis=1)


Calculate = Callable[[Labels, Probabilities, Weights], dict[str, Scores]]


def all_scores(labels: Labels, probabilities: Probabilities, weights: Weights) -> dict[str, Scores]:
    """Every score by name: (k,) each, `confusion` (k, cells) as in Confusions, and of each class (k, classes).

    Recall and F1 of a class without images are nan, and so is the precision of a class that is never predicted.
    """
    confusion = confusions(labels, probabilities.argmax(axis=1), weights, probabilities.shape[1])
    hits, actual, predicted = confusion.hits, confusion.of_actual, confusion.of_predicted
    areas = auroc(labels, probabilities, weights)
    return {
        **count_scores(confusion),
        **probability_scores(labels, probabilities, weights),
        "auroc": _mean(np.where(actual > 0, areas, np.nan)),
        "confusion": confusion.counts,
        "class_precision": _divide(hits, predicted),
        "class_recall": _divide(hits, actual),
        "class_f1": f1_of(hits, actual, predicted),
        "class_auroc": areas,
    }


def bootstrapped(
    calculate: Calculate,
    labels: Labels,
    probabilities: Probabilities,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Scores]:
    """Scores of the images and of each resample, (1 + resamples, ...) by name, as `calculate` gives them."""
    chunks = [calculate(labels, probabilities, weights) for weights in resample(len(labels), resamples, seed)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _calibration_error(labels: Labels, probabilities: Probabilities, weights: Weights) -> Scores:
    """Mean distance between confidence and accuracy over bins of confidence, weighted by images."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    gaps = (confidence - right).astype(np.float32)[:, None] * weights
    return _divide(np.abs(_sum_by(bins_of(confidence), gaps, BINS)).sum(axis=0), weights.sum(axis=0, dtype=np.float64))


def bins_of(confidence: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """The bin of each confidence; a bin includes its upper end."""
    return np.asarray(np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1))


def _area(positive: npt.NDArray[np.bool_], scores: Probabilities, weights: Weights) -> Scores:
    """(k,): share of the pairs of a positive and a negative image that are in the right order."""
    if positive.all() or not positive.any():
        return np.full(weights.shape[1], np.nan)
    negatives = np.flatnonzero(~positive)[np.argsort(scores[~positive], kind="stable")]
    below, not_above = (np.searchsorted(scores[negatives], scores[positive], side) for side in ("left", "right"))
    # Sum the weights of the negatives only at the places needed: much faster than at every place.
    places = np.unique(np.concatenate([[0, len(negatives)], below, not_above]))
    sums = np.zeros((len(places), weights.shape[1]))
    np.cumsum(np.add.reduceat(weights[negatives], places[:-1], axis=0), axis=0, dtype=np.float64, out=sums[1:])
    beaten = (sums[np.searchsorted(places, below)] + sums[np.searchsorted(places, not_above)]) / 2
    pairs = np.einsum("ik,ik->k", weights[positive], beaten)
    return _divide(pairs, weights[positive].sum(axis=0, dtype=np.float64) * sums[-1])


def _sum_by(groups: Labels, weights: Weights | Scores, count: int) -> Scores:
    """(count, k): the weights (images, k) added up by group (images,)."""
    from scipy.sparse import csr_array

    images = len(groups)
    members = csr_array((np.ones(images, np.float32), (groups, np.arange(images))), shape=(count, images))
    return np.asarray(members @ weights, dtype=np.float64)


def _divide(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Scores:
    """nan where the denominator is 0."""
    return np.asarray(np.where(denominator == 0, np.nan, numerator / np.where(denominator == 0, 1, denominator)))


def _mean(scores: Scores) -> Scores:
    """(k,): the mean of (k, classes) without nan; nan if all are."""
    known = ~np.isnan(scores)
    return _divide(np.where(known, scores, 0).sum(axis=1), known.sum(axis=1))
