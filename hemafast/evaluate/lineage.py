"""Scores that know blood cells: lineages, stages of maturation, and blasts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import interval, plain, wilson, with_intervals
from hemafast.evaluate.metrics import Confusions, count_scores
from hemafast.lineage import Lineage

SPECIFICITY = 0.95
"""Share of the other cells that must not be called blasts where sensitivities are compared."""


def lineage_scores(confusion: Confusions, classes: Sequence[str], lineage: Lineage) -> dict[str, Any] | None:
    """Confusion and scores between lineages, from the confusion of the images and of each resample.

    `mistake_distance` is the mean distance of the wrong answers in the tree, as the height of the lowest branch that
    holds both classes (Bertinetto et al., CVPR 2020): 1 within a lineage, 2 between lineages. None if a class belongs
    to no known lineage.
    """
    if lineage.lacks(classes):
        return None
    names, groups = lineage.groups(classes)
    folded = confusion.folded(groups, len(names))
    scores = {name: values for name, values in count_scores(folded).items() if name in ("accuracy", "macro_f1")}
    return {
        "names": names,
        "confusion": folded.first().tolist(),
        **with_intervals({**scores, "mistake_distance": mistake_distance(confusion, groups)}),
    }


def mistake_distance(confusion: Confusions, groups: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """(1 + resamples,); nan without a mistake."""
    wrong = confusion.actual != confusion.predicted
    across = groups[confusion.actual] != groups[confusion.predicted]
    mistakes = confusion.counts @ wrong.astype(np.float64)
    shares = confusion.counts @ across.astype(np.float64) / np.maximum(mistakes, 1)
    return np.where(mistakes > 0, 1 + shares, np.nan)


def maturation_scores(confusion: Confusions, classes: Sequence[str], lineage: Lineage) -> dict[str, Any] | None:
    """How far off the answers to maturing cells are, from the confusion of the images and of each resample.

    `distance` is the mean number of stages between the true and the predicted stage. An answer outside the series
    counts as the longest distance within it. `adjacent` is the share of the cells that are taken for a stage next to
    theirs. None if there are no stages, a stage is missing from the classes, or the stages have no images at all.
    """
    stages = np.array([label in lineage.stages for label in classes])
    if not lineage.stages or stages.sum() < len(lineage.stages):
        return None
    cells = confusion.among(stages)
    images = cells.counts.sum(axis=1)
    if not images[0]:
        return None
    stage_of = np.array([lineage.stages.index(label) if label in lineage.stages else -1 for label in classes])
    steps = lineage.steps(classes)[stage_of[cells.actual], cells.predicted]
    within = stages[cells.predicted]
    means = {"distance": steps, "adjacent": within & (steps == 1)}
    found = {name: _mean(cells.counts, images, of.astype(np.float64)) for name, of in means.items()}
    counts = {
        "exact": cells.counts[0][within & (steps == 0)].sum(),
        "neighbour": cells.counts[0][within & (steps == 1)].sum(),
        "far": cells.counts[0][within & (steps > 1)].sum(),
        "outside": cells.counts[0][~within].sum(),
    }
    return {
        "stages": list(lineage.stages),
        "images": int(images[0]),
        "distance": plain(found["distance"][0]),
        "ci95": plain(interval(found["distance"])),
        "adjacent": plain(found["adjacent"][0]),
        "adjacent_ci95": plain(interval(found["adjacent"])),
        "largest": len(lineage.stages) - 1,
        **{name: int(count) for name, count in counts.items()},
    }


def _mean(counts: npt.NDArray[Any], images: npt.NDArray[Any], of: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(1 + resamples,): the mean of `of` over the images; nan without images."""
    return np.asarray(np.where(images > 0, counts @ of / np.maximum(images, 1), np.nan))


def blast_scores(
    labels: npt.NDArray[np.int64],
    probabilities: npt.NDArray[np.floating[Any]],
    classes: Sequence[str],
    threshold: float | None,
    reported: npt.NDArray[np.bool_],
    blast: str | None,
) -> dict[str, Any] | None:
    """Blasts against the rest: by the likeliest class on all images, and by `threshold` on the `reported` images.

    `at_specificity` is a point of the ROC curve of all images: the sensitivity where SPECIFICITY of the others are
    spared. Its threshold is that of these very images, so it compares models and promises nothing for other images.

    Intervals are Wilson's. None without a class of blasts.
    """
    if blast is None or blast not in classes:
        return None
    index = list(classes).index(blast)
    positive = labels == index
    point = None
    if threshold is not None:
        called = probabilities[reported, index] >= threshold
        point = {"threshold": threshold, **_operate(positive[reported], called)}
    return {
        "class": blast,
        "likeliest": _operate(positive, probabilities.argmax(axis=1) == index),
        "operating_point": point,
        "at_specificity": _at_specificity(positive, probabilities[:, index]),
    }


def _at_specificity(
    positive: npt.NDArray[np.bool_], probabilities: npt.NDArray[np.floating[Any]]
) -> dict[str, Any] | None:
    """The point of the ROC curve with the most blasts found at SPECIFICITY or more; None without others."""
    others = np.sort(probabilities[~positive])
    if not len(others):
        return None
    threshold = float(others[math.ceil(SPECIFICITY * len(others)) - 1])
    return {"above": threshold, **_operate(positive, probabilities > threshold)}


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
