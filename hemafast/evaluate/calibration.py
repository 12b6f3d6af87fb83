"""Calibrated confidences: one temperature, and thresholds on confidence, on a blast's probability and on any class's.

They are fitted on one half of the validation images and reported on the other.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from hemafast.engine.checkpoint import Calibration
from hemafast.evaluate.conformal import fit_sets
from hemafast.evaluate.metrics import Labels, Probabilities

TARGET = 0.95
"""Share of right answers that the threshold aims at."""

SENSITIVITY = 0.95
"""Share of the blasts that the blast threshold aims to find."""

FEWEST = 20
"""Images on which a threshold can be fitted: of fewer, a share of 95 % is all of them."""

_TEMPERATURES = (1 / 20, 20.0)
_LEAST = float(np.finfo(np.float32).tiny)  # a softmax in fp32 rounds to zero below it


def soften(probabilities: Probabilities, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities (images, classes) as if their logits had been divided by `temperature`; rows of nan stay nan.

    Logarithms of probabilities are logits up to a constant, and a softmax ignores constants.
    """
    logits = np.log(np.maximum(probabilities.astype(np.float64), _LEAST)) / temperature
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def calibrate(
    labels: Labels, probabilities: Probabilities, *, target: float = TARGET, blast: int | None = None
) -> Calibration:
    """Fit temperature and thresholds.

    Args:
        labels: (images,), indices of the true classes.
        probabilities: (images, classes), rows that add up to 1.
        target: share of right answers that the confidence threshold aims at.
        blast: index of the class of blasts, if there is one.

    Returns:
        The calibration; a temperature of 1 and no thresholds without images.
    """
    if len(labels) == 0:
        return Calibration(temperature=1.0, threshold=None, target=target, images=0)
    temperature = fit_temperature(labels, probabilities)
    softened = soften(probabilities, temperature)
    return Calibration(
        temperature=temperature,
        threshold=fit_threshold(labels, softened, target),
        target=target,
        images=len(labels),
        blast_threshold=None if blast is None else fit_sensitivity(labels == blast, softened[:, blast], SENSITIVITY),
        blasts=None if blast is None else int((labels == blast).sum()),
        set_thresholds=fit_sets(labels, softened),
    )


def fit_temperature(labels: Labels, probabilities: Probabilities) -> float:
    """The temperature between 1/20 and 20 with the lowest log loss (Guo et al. 2017, arXiv 1706.04599)."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(logarithm: float) -> float:
        chosen = soften(probabilities, float(np.exp(logarithm)))[rows, labels]
        return float(-np.log(np.maximum(chosen, _LEAST)).mean())

    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def fit_threshold(labels: Labels, probabilities: Probabilities, target: float, *, least: int = FEWEST) -> float | None:
    """The lowest confidence at which the share of right answers is at least `target`.

    None if there is none that at least `least` images reach: a threshold above nearly all answers would name no class.
    """
    confidence = probabilities.max(axis=1)
    order = np.argsort(-confidence, kind="stable")
    right = np.cumsum((probabilities.argmax(axis=1) == labels)[order])
    share = right / np.arange(1, len(labels) + 1)
    sorted_confidence = confidence[order]
    last_of_its_value = np.append(sorted_confidence[1:] != sorted_confidence[:-1], True)
    enough = np.arange(1, len(labels) + 1) >= least
    good = np.flatnonzero((share >= target) & last_of_its_value & enough)
    return float(sorted_confidence[good[-1]]) if len(good) else None


def fit_sensitivity(
    positive: npt.NDArray[np.bool_], scores: Probabilities, target: float, *, least: int = FEWEST
) -> float | None:
    """The highest threshold that finds at least `target` of the positive images; None of fewer than `least` of them."""
    found = -np.sort(-scores[positive])
    return float(found[math.ceil(target * len(found)) - 1]) if len(found) >= least else None
