"""Compare several runs: which settings differ, and by how much the scores do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hemafast.evaluate.intervals import Weights, interval, resample
from hemafast.evaluate.metrics import Labels, Scores, confusions, count_scores
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


def difference(first: Path, other: Path) -> dict[str, Any] | None:
    """How the `other` run differs from the first on the same images; None for a run scored on other images.

    `macro_f1` is the difference, with a paired 95 % interval: both runs are resampled with the same images, so that
    chance in the choice of images cancels out. `only_first` and `only_other` are images that one run alone has right,
    and `mcnemar` is the p-value of McNemar's exact test that both are as frequent.
    """
    from scipy.stats import binomtest

    (one, classes, _), (two, same, _) = (read_predictions(folder / PREDICTIONS) for folder in (first, other))
    key = ["image", "label"]
    if classes != same or sorted(map(tuple, one[key].to_numpy())) != sorted(map(tuple, two[key].to_numpy())):
        return None
    two = two.set_index("image").loc[one["image"]].reset_index()
    index = {name: place for place, name in enumerate(classes)}
    labels, before, after = (
        np.array([index[name] for name in column]) for column in (one["label"], one["predicted"], two["predicted"])
    )

    def macro_f1(answers: Labels, weights: Weights) -> Scores:
        return count_scores(confusions(labels, answers, weights, len(classes)))["macro_f1"]

    found = np.concatenate([macro_f1(after, weights) - macro_f1(before, weights) for weights in resample(len(labels))])
    was_right, is_right = before == labels, after == labels
    lost, won = int((was_right & ~is_right).sum()), int((is_right & ~was_right).sum())
    return {
        "macro_f1": float(found[0]),
        "ci95": interval(found).tolist(),
        "images": len(labels),
        "only_first": lost,
        "only_other": won,
        "mcnemar": float(binomtest(won, won + lost).pvalue) if won + lost else 1.0,
    }
