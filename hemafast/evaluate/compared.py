"""Before and after on the same labelled cells, with a paired interval of the difference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import Weights, interval, plain, resample, with_intervals
from hemafast.evaluate.metrics import confusions, count_scores

Labels = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]

_SHOWN = ("macro_f1", "balanced_accuracy", "accuracy")


def compare(labels: Labels, before: Logits, after: Logits, classes: Sequence[str]) -> dict[str, Any]:
    """Scores of two sets of answers to the same cells.

    Args:
        labels: (n,), indices of the true classes.
        before: (n, classes).
        after: (n, classes).
        classes: names of the classes.

    Returns:
        `before` and `after`, scores with intervals; `difference` of macro-F1 with a paired interval: both are resampled
        with the same cells. And F1 of each class that has labels.
    """
    answers = {"before": before.argmax(axis=1), "after": after.argmax(axis=1)}
    parts: dict[str, list[Any]] = {name: [] for name in answers}
    for weights in resample(len(labels)):
        for name, predicted in answers.items():
            parts[name].append(_scores(labels, predicted, weights, len(classes)))
    scores = {
        name: {one: np.concatenate([part[one] for part in found]) for one in _SHOWN} for name, found in parts.items()
    }
    gain = scores["after"]["macro_f1"] - scores["before"]["macro_f1"]
    counts = np.bincount(labels, minlength=len(classes))
    return {
        "cells": len(labels),
        **{name: with_intervals(values) for name, values in scores.items()},
        "difference": {"macro_f1": float(gain[0]), "ci95": plain(interval(gain))},
        "per_class": [
            {
                "class": name,
                "cells": int(counts[place]),
                **{key: _f1(labels, one, place) for key, one in answers.items()},
            }
            for place, name in enumerate(classes)
            if counts[place]
        ],
    }


def _scores(labels: Labels, predicted: Labels, weights: Weights, classes: int) -> dict[str, Any]:
    return count_scores(confusions(labels, predicted, weights, classes))


def _f1(labels: Labels, predicted: Labels, place: int) -> float:
    hits = ((labels == place) & (predicted == place)).sum()
    return float(2 * hits / ((labels == place).sum() + (predicted == place).sum()))
