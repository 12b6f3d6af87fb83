"""All scores of a set of images, as plain data for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.engine.checkpoint import Calibration
from hemafast.evaluate.intervals import RESAMPLES, wilson, with_intervals
from hemafast.evaluate.lineage import blast_scores, lineage_scores, maturation_scores
from hemafast.evaluate.metrics import (
    Labels,
    Probabilities,
    Scores,
    all_scores,
    bins_of,
    bootstrapped,
    confusions,
    count_scores,
    probability_scores,
)
from hemafast.lineage import Lineage, packaged_lineage


def score(
    labels: Labels,
    probabilities: Probabilities,
    classes: Sequence[str],
    *,
    lineage: Lineage | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """All scores of a set of images with their 95 % intervals.

    Args:
        labels: (images,), indices of the true classes.
        probabilities: (images, classes), rows that add up to 1.
        classes: names of the classes, in label order.
        lineage: how they are related; None for the tree of the challenge.
        resamples: number of bootstrap resamples.
        seed: of the resamples.

    Returns:
        Scores by name. `ci95` holds [low, high] by name. A score that is undefined here is None. Means are over the
        classes that have images: `classes` is their number, `absent` names the others.
    """
    lineage = lineage or packaged_lineage()
    found = bootstrapped(all_scores, labels, probabilities, resamples=resamples, seed=seed)
    cells = confusions(labels, probabilities.argmax(axis=1), np.ones((len(labels), 1), np.float32), len(classes))
    confusion = replace(cells, counts=found["confusion"])
    images = np.bincount(labels, minlength=len(classes))
    return {
        **with_intervals({name: values for name, values in found.items() if values.ndim == 1}),
        "images": len(labels),
        "classes": int((images > 0).sum()),
        "absent": [name for name, count in zip(classes, images, strict=True) if not count],
        "per_class": _per_class(found, classes, images),
        "confusion": confusion.first().tolist(),
        "reliability": reliability(labels, probabilities),
        "lineage": lineage_scores(confusion, classes, lineage),
        "maturation": maturation_scores(confusion, classes, lineage),
    }


def scores_among(
    labels: Labels, probabilities: Probabilities, places: Sequence[int], *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """Macro-F1 and accuracy, with intervals, where only some classes can be answers.

    Args:
        labels: (images,), all of them of such a class.
        probabilities: (images, classes).
        places: of the classes that can be answers, ascending.
        resamples: number of bootstrap resamples.
    """
    found = bootstrapped(
        lambda own, among, weights: count_scores(confusions(own, among.argmax(axis=1), weights, len(places))),
        np.searchsorted(places, labels),
        probabilities[:, list(places)],
        resamples=resamples,
    )
    return with_intervals({name: found[name] for name in ("macro_f1", "accuracy")})


def calibrated_scores(
    labels: Labels,
    probabilities: Probabilities,
    softened: Probabilities,
    classes: Sequence[str],
    calibration: Calibration,
    reported: npt.NDArray[np.bool_],
    blast: str | None,
) -> dict[str, Any]:
    """The effect of temperature and thresholds on the `reported` images, which they were not fitted on.

    `softened` are the `probabilities` with that temperature, `blast` is the class of blasts.
    """
    return {
        "calibrated": {
            "images": int(reported.sum()),
            "before": _confidence_scores(labels[reported], probabilities[reported]),
            "after": _confidence_scores(labels[reported], softened[reported]),
        },
        "selective": selective(labels[reported], softened[reported], calibration.threshold),
        "blast": blast_scores(labels, softened, classes, calibration.blast_threshold, reported, blast),
    }


def selective(labels: Labels, probabilities: Probabilities, threshold: float | None) -> dict[str, Any] | None:
    """How many images are answered with a confidence of at least `threshold`, and how many of them rightly."""
    if threshold is None or not len(labels):
        return None
    answered = probabilities.max(axis=1) >= threshold
    right, count = int((probabilities.argmax(axis=1) == labels)[answered].sum()), int(answered.sum())
    return {
        "threshold": threshold,
        "coverage": count / len(labels),
        "answered": count,
        "images": len(labels),
        "accuracy": right / count if count else None,
        "ci95": wilson(right, count),
    }


def reliability(labels: Labels, probabilities: Probabilities) -> list[dict[str, Any]]:
    """The points of a reliability diagram: one for each bin of confidence that has images.

    `ci95` is Wilson's interval of the accuracy.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = bins_of(confidence)
    return [
        {
            "confidence": float(confidence[chosen].mean()),
            "accuracy": float(right[chosen].mean()),
            "ci95": wilson(int(right[chosen].sum()), int(chosen.sum())),
            "images": int(chosen.sum()),
        }
        for index in np.unique(bins)
        for chosen in [bins == index]
    ]


def _confidence_scores(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    """Log loss and calibration error, with intervals, and the reliability diagram."""
    found = bootstrapped(probability_scores, labels, probabilities)
    shown = with_intervals({name: found[name] for name in ("log_loss", "ece")})
    return {**shown, "reliability": reliability(labels, probabilities)}


def _per_class(found: dict[str, Scores], classes: Sequence[str], images: npt.NDArray[np.int64]) -> dict[str, Any]:
    """The scores of each class that has images."""
    scores = {name.removeprefix("class_"): values for name, values in found.items() if name.startswith("class_")}
    return {
        label: {
            "images": int(images[index]),
            **with_intervals({name: values[:, index] for name, values in scores.items()}),
        }
        for index, label in enumerate(classes)
        if images[index]
    }
