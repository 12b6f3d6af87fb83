"""Scores that know blood cells: lineages, stages of maturation, and blasts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import interval, plain, wilson, with_intervals
from hemafast.evaluate.metrics import Confusions, count_scores
from hemafast.taxonomy import BLAST, LINEAGES, MATURATION


def lineage_scores(confusion: Confusions, classes: Sequence[str]) -> dict[str, Any] | None:
    """Confusion and scores between lineages, from the confusion of the images and of each resample.

    None if a class belongs to no known lineage.
    """
    lineage_of = {label: lineage for lineage, labels in LINEAGES.items() for label in labels}
    if not set(classes) <= set(lineage_of):
        return None
    names = [lineage for lineage in LINEAGES if lineage in {lineage_of[label] for label in classes}]
    folded = confusion.folded(np.array([names.index(lineage_of[label]) for label in classes]), len(names))
    scores = {name: values for name, values in count_scores(folded).items() if name in ("accuracy", "macro_f1")}
    return {
        "names": names,
        "confusion": folded.first().tolist(),
        **with_intervals(scores),
    }


def maturation_scores(confusion: Confusions, classes: Sequence[str]) -> dict[str, Any] | None:
    """How far off the answers to maturing neutrophils are, from the confusion of the images and of each resample.

    `distance` is the mean number of stages between the true and the predicted stage. An answer outside the series
    counts as the longest distance within it. None if a stage is missing from the classes, or has no images at all.
    """
    if not set(MATURATION) <= set(classes):
        return None
    stages = np.array([label in MATURATION for label in classes])
    cells = confusion.among(stages)
    images = cells.counts.sum(axis=1)
    if not images[0]:
        return None
    stage_of = np.array([MATURATION.index(label) if label in MATURATION else -1 for label in classes])
    steps = maturation_steps(classes)[stage_of[cells.actual], cells.predicted]
    distance = np.where(images > 0, cells.counts @ steps / np.maximum(images, 1), np.nan)
    within = stages[cells.predicted]
    counts = {
        "exact": cells.counts[0][steps == 0].sum(),
        "neighbour": cells.counts[0][steps == 1].sum(),
        "far": cells.counts[0][within & (steps > 1)].sum(),
        "outside": cells.counts[0][~within].sum(),
    }
    return {
        "stages": list(MATURATION),
        "images": int(images[0]),
        "distance": plain(distance[0]),
        "ci95": plain(interval(distance)),
        "largest": len(MATURATION) - 1,
        **{name: int(count) for name, count in counts.items()},
    }


def maturation_steps(classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(stages, classes): number of stages between each stage and each class."""
    place = {stage: index for index, stage in enumerate(MATURATION)}
    farthest = len(MATURATION) - 1
    return np.array(
        [[abs(place[label] - index) if label in place else farthest for label in classes] for index in place.values()]
    )


def blast_scores(
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.floating[Any]],
    classes: Sequence[str],
    threshold: float | None,
    reported: npt.NDArray[np.bool_],
) -> dict[str, Any] | None:
    """Blasts against the rest: by the likeliest class on all images, and by `threshold` on the `reported` images.

    Intervals are Wilson's. None without a class of blasts.
    """
    if BLAST not in classes:
        return None
    index = list(classes).index(BLAST)
    positive = labels == index
    point = None
    if threshold is not None:
        called = probabilities[reported, index] >= threshold
        point = {"threshold": threshold, **_operate(positive[reported], called)}
    return {
        "class": BLAST,
        "likeliest": _operate(positive, probabilities.argmax(axis=1) == index),
        "operating_point": point,
    }


def _operate(positive: npt.NDArray[np.bool_], called: npt.NDArray[np.bool_]) -> dict[str, Any]:
    found, spared = int((positive & called).sum()), int((~positive & ~called).sum())
    blasts, others = int(positive.sum()), int((~positive).sum())
    return {
        "blasts": blasts,
        "others": others,
        "sensitivity": found / blasts if blasts else None,
        "sensitivity_ci95": wilson(found, blasts),
        "specificity": spared / others if others else None,
        "specificity_ci95": wilson(spared, others),
    }
