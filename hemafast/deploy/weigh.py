"""Which members of an ensemble are worth their cost, and with which weights; from their answers to held-out images."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.metrics import count_confusion, macro_f1

Opinions = npt.NDArray[np.floating[Any]]
"""(members, images, classes): probabilities."""
Labels = npt.NDArray[np.int64]

_SLACK = 1e-6  # of a cost: sums of equal costs differ in the last digits
_ROUNDS, _STILL = 2000, 1e-9
_LEAST_WEIGHT = 0.01  # a member below it costs more than it tells
_TINY = float(np.finfo(np.float64).tiny)


def score_of(probabilities: npt.NDArray[np.floating[Any]], labels: Labels) -> float:
    """Macro-F1 of probabilities (images, classes)."""
    return macro_f1(count_confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1]))


def log_loss(probabilities: npt.NDArray[np.floating[Any]], labels: Labels) -> float:
    """Mean negative logarithm of the probability of the true class."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], _TINY)).mean())


def best_members(opinions: Opinions, labels: Labels, costs: Sequence[float], most: float) -> tuple[int, ...]:
    """The members whose mean has the highest macro-F1 at a cost of at most `most`; of equals, those that cost less.

    All subsets are tried.

    Args:
        opinions: of all members, (members, images, classes).
        labels: (images,).
        costs: of each member.
        most: largest sum of the costs. A cheapest member is taken even if it costs more.

    Returns:
        Their places, ascending.
    """
    places = range(len(costs))
    fitting = [
        subset
        for count in range(1, len(costs) + 1)
        for subset in combinations(places, count)
        if sum(costs[place] for place in subset) <= most + _SLACK
    ]

    def worth(subset: tuple[int, ...]) -> tuple[float, float, float]:
        mean = opinions[list(subset)].mean(axis=0)
        return score_of(mean, labels), -sum(costs[place] for place in subset), -log_loss(mean, labels)

    return max(fitting or [(int(np.argmin(costs)),)], key=worth)


def fit_weights(opinions: Opinions, labels: Labels) -> npt.NDArray[np.float64]:
    """Weights (members,) whose mean makes the true classes most probable; they add up to 1.

    This is a mixture of given parts: expectation maximisation finds the one maximum (Dempster et al. 1977).
    """
    of_truth = np.maximum(opinions[:, np.arange(len(labels)), labels].astype(np.float64), _TINY)
    weights = np.full(len(opinions), 1 / len(opinions))
    for _ in range(_ROUNDS):
        shares = weights[:, None] * of_truth
        better = (shares / shares.sum(axis=0)).mean(axis=1)
        moved = np.abs(better - weights).max()
        weights = better
        if moved < _STILL:
            break
    return weights


def worth_their_cost(weights: npt.NDArray[np.float64]) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """The places of members with a weight of at least 1 %, and their weights, which add up to 1 again."""
    kept = np.flatnonzero(weights >= min(_LEAST_WEIGHT, weights.max()))
    return tuple(kept.tolist()), weights[kept] / weights[kept].sum()
