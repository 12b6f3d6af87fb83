"""Compare several runs: which settings differ, and by how much the scores do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemafast.evaluate.intervals import Weights, interval
from hemafast.evaluate.metrics import Labels, Probabilities, Scores, bootstrapped, confusions, count_scores
from hemafast.evaluate.predictions import read_predictions
from hemafast.run_folder import PREDICTIONS

_ELSEWHERE = ("output",)


def changed_settings(settings: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The settings that differ between runs, with the value in each run."""
    return {
        name: [each[name] for each in settings]
        for name in settings[0]
        if name not in _ELSEWHERE and any(each[name] != settings[0][name] for each in settings)
    }


def differences(first: Path, others: Sequence[Path]) -> list[dict[str, Any] | None]:
    """The macro-F1 of each other run minus that of the first, with a paired 95 % interval.

    Both runs are resampled with the same images, so that chance in the choice of images cancels out. None for a run
    scored on other images.
    """
    return [_difference(first, other) for other in others]


def _difference(first: Path, other: Path) -> dict[str, Any] | None:
    (one, classes, _), (two, same, _) = (read_predictions(folder / PREDICTIONS) for folder in (first, other))
    key = ["image", "label"]
    if classes != same or sorted(map(tuple, one[key].to_numpy())) != sorted(map(tuple, two[key].to_numpy())):
        return None
    two = two.set_index("image").loc[one["image"]].reset_index()
    index = {name: place for place, name in enumerate(classes)}
    labels, before, after = (
        np.array([index[name] for name in column]) for column in (one["label"], one["predicted"], two["predicted"])
    )

    def calculate(labels: Labels, _: Probabilities, weights: Weights) -> dict[str, Scores]:
        scores = [
            count_scores(confusions(labels, answers, weights, len(classes)))["macro_f1"] for answers in (after, before)
        ]
        return {"macro_f1": scores[0] - scores[1]}

    found = bootstrapped(calculate, labels, np.empty((len(labels), 0)))["macro_f1"]
    low, high = interval(found)
    return {"macro_f1": float(found[0]), "ci95": [float(low), float(high)], "images": len(labels)}
