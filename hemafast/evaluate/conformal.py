"""Sets of classes that hold the true one with a stated probability, class by class, for images like those of home.

Mondrian conformal prediction with the probability of a class as its score (Vovk et al. 2003; Sadinle et al. 2019, arXiv
1609.00451): of each class, `SET_COVERAGE` of the cells have it in their set, on average over calibrations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import wilson
from hemafast.evaluate.metrics import Labels, Probabilities

SET_COVERAGE = 0.90
"""Share of the cells of each class whose set of classes should hold it."""
SEPARATOR = ";"
_LEAST = 9  # images of a class: SET_COVERAGE of 9 + 1 is the least of them

SetThresholds = tuple[float | None, ...]
"""By class: the least probability with which it is in a set; None if it never is."""


def fit_sets(labels: Labels, probabilities: Probabilities) -> SetThresholds:
    """The thresholds of all classes, from images that the model was not trained on.

    Args:
        labels: (images,), indices of the true classes.
        probabilities: (images, classes), calibrated.

    Returns:
        A threshold for each class. A class with fewer than `_LEAST` images has 0: only being in every set makes sure of
        it. A class without images has None, for nothing is known of it.
    """
    return tuple(_threshold(column[labels == index]) for index, column in enumerate(probabilities.T))


def _threshold(probabilities: Probabilities) -> float | None:
    """The threshold of one class, from the probabilities that its own cells have of it."""
    if not len(probabilities):
        return None
    place = math.ceil((len(probabilities) + 1) * SET_COVERAGE)
    return float(np.sort(probabilities)[-place]) if place <= len(probabilities) else 0.0


def exceptions(classes: Sequence[str], thresholds: SetThresholds) -> list[str]:
    """Sentences about classes whose coverage is bought by being in every set, or is unknown."""
    kinds = {
        f"In every set, because fewer than {_LEAST} images calibrated them": 0.0,
        "In no set, because no image calibrated them": None,
    }
    named = {
        said: [name for name, one in zip(classes, thresholds, strict=True) if one == least]
        for said, least in kinds.items()
    }
    return [f"{said}: {', '.join(names)}" for said, names in named.items() if names]


def in_sets(probabilities: Probabilities, thresholds: SetThresholds) -> npt.NDArray[np.bool_]:
    """Whether each class is in the set of each image, (images, classes); never for a row of nan."""
    least = np.array([math.inf if one is None else one for one in thresholds])
    return np.asarray(probabilities >= least)


def set_names(probabilities: Probabilities, classes: Sequence[str], thresholds: SetThresholds) -> list[str]:
    """The set of each image, its classes joined by SEPARATOR and the most probable first; empty if no class fits."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    chosen = in_sets(probabilities, thresholds)
    return [
        SEPARATOR.join(classes[index] for index in places if row[index])
        for places, row in zip(order, chosen, strict=True)
    ]


def set_scores(labels: Labels, chosen: npt.NDArray[np.bool_] | None, classes: Sequence[str]) -> dict[str, Any] | None:
    """How often the sets hold the true class, and how many classes they hold.

    Args:
        labels: (images,), indices of the true classes.
        chosen: (images, classes), as `in_sets`; None without sets.
        classes: names of the classes, in label order.

    Returns:
        `target`, `images`, `coverage` with Wilson's `ci95`, `mean_size`, `empty` (share of sets without a class), and
        `per_class` with the coverage of each class that has images. None without sets or images.
    """
    if chosen is None or not len(labels):
        return None
    covered = chosen[np.arange(len(labels)), labels]
    sizes = chosen.sum(axis=1)
    return {
        "target": SET_COVERAGE,
        **_coverage(covered),
        "mean_size": float(sizes.mean()),
        "empty": float((sizes == 0).mean()),
        "per_class": {
            name: _coverage(covered[labels == index]) for index, name in enumerate(classes) if (labels == index).any()
        },
    }


def _coverage(covered: npt.NDArray[np.bool_]) -> dict[str, Any]:
    hits = int(covered.sum())
    return {"images": len(covered), "coverage": hits / len(covered), "ci95": wilson(hits, len(covered))}
