"""What features tell about labels: nearest neighbours and a linear probe, by cross-validation, groups apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hemafast.evaluate.intervals import Weights, resample, with_intervals
from hemafast.evaluate.metrics import Labels, confusions, count_scores
from hemafast.folds import folds_apart
from hemafast.logistic import Axes, fit_logistic
from hemafast.neighbours import Features, nearest_labels
from hemafast.objective import class_weights

MOST = 20_000
"""Cells that are probed; of more, some are drawn."""
_FOLDS = 5
_SCORES = ("accuracy", "macro_f1")
_SMOOTHNESS = 0.03  # C of the logistic regression, on standardised features


def probe(features: Features, labels: Sequence[str], groups: Sequence[str], seed: int = 0) -> dict[str, Any] | None:
    """Score how well features tell labels.

    Args:
        features: (n, d).
        labels: class of each cell.
        groups: patient or slide of each; cells of one group are never on both sides of a fold.
        seed: of the folds, and of the draw if there are more than MOST cells.

    Returns:
        `images`, `classes`, `folds`, and `knn` and `linear` with accuracy and macro-F1 and their 95 % intervals over
        the images (`ci95`); None if no class has cells of two groups, or if there is one class.
    """
    drawn = np.sort(np.random.default_rng(seed).permutation(len(labels))[:MOST])
    names, places = np.unique(np.array(labels)[drawn], return_inverse=True)
    features, kept = features[drawn], np.array(groups)[drawn].tolist()
    folds = list(folds_apart(places, kept, _FOLDS, seed))
    if len(names) < 2 or not folds:
        return None
    return {
        "images": len(drawn),
        "classes": names.tolist(),
        "folds": len(folds),
        "knn": _scored(places, _held_out(nearest_labels, features, places, folds), len(names)),
        "linear": _scored(places, _held_out(_linear, features, places, folds), len(names)),
    }


def _held_out(answer: Any, features: Features, labels: Labels, folds: Sequence[tuple[Labels, Labels]]) -> Labels:
    """The answers to the cells of each fold by what was fitted on the others."""
    answers = np.zeros(len(labels), dtype=np.int64)
    for fitted, left in folds:
        answers[left] = answer(features[fitted], labels[fitted], features[left])
    return answers


def _linear(features: Features, labels: Labels, asked: Features) -> Labels:
    """Answers of a logistic regression in which each class counts the same."""
    axes, weights = Axes.of(features, features.shape[1]), class_weights(np.bincount(labels))[labels]
    layer = fit_logistic(axes(features), labels, int(labels.max()) + 1, _SMOOTHNESS, weights)
    return np.asarray(layer(axes(asked)).argmax(axis=1))


def _scored(labels: Labels, answers: Labels, classes: int) -> dict[str, Any]:
    def scores(weights: Weights) -> dict[str, Any]:
        return count_scores(confusions(labels, answers, weights, classes))

    found = [scores(weights) for weights in resample(len(labels))]
    return with_intervals({name: np.concatenate([part[name] for part in found]) for name in _SCORES})
