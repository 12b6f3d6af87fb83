"""A last layer for another laboratory from few labels: logistic regression on features, mixed with the old layer.

The likelihoods of both are multiplied: logits are `trust` times those of the old layer plus those of the new one. How
much the old layer is trusted, and how smooth the new one is, is weighed by cross-validation within the labels, groups
apart: each choice counts by the likelihood that it gives to labels it has not seen. A sum of linear layers is a linear
layer, so the mixture of all choices is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hemafast.folds import folds_apart
from hemafast.logistic import Axes, Labels, Layer, Matrix, cross_entropy, fit_logistic
from hemafast.objective import class_weights

SMOOTHNESS = (0.0003, 0.003, 0.03, 0.3)
"""C of the logistic regression on standardised features: the smaller, the smoother."""
TRUST = (0.0, 0.5, 1.0, 2.0)
_FOLDS, _INNER_FOLDS = 4, 3
_NEGLIGIBLE = 1e-3  # weight of a choice


@dataclass(frozen=True, slots=True)
class Choice:
    """How a new layer is made."""

    smoothness: float
    trust: float


FEW = Choice(smoothness=0.001, trust=2.0)
"""Where there are too few labels to choose: one a class changes little."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A last layer, and what it and the old one answer for cells that it was not fitted on."""

    layer: Layer
    trust: float
    """Mean weight of the old layer."""
    held_out: Matrix | None
    """Logits (n, classes) of each labelled cell from a layer fitted without its fold; None if labels are too few."""


def with_new_classes(old: Layer, added: int, features: Matrix) -> Layer:
    """The old layer with rows for classes that it lacks, on which it has no opinion.

    Such a row is the mean of the others, raised so that for a typical one of the cells `features` (m, d) it is as
    likely as the likeliest class.
    """
    if not added:
        return old
    logits = old(features)
    gap = float((logits.max(axis=1) - logits.mean(axis=1)).mean())
    weights = np.vstack([old.weights, np.repeat(old.weights.mean(axis=0)[None], added, axis=0)])
    return Layer(weights, np.concatenate([old.bias, np.repeat(old.bias.mean() + gap, added)]))


def fit_layer(features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, seen: Matrix) -> tuple[Layer, float]:
    """A last layer for labelled cells, and how much the old one is trusted; see `fit_head`, which also scores it."""
    axes = Axes.of(seen)
    return _fitted(axes, features, labels, groups, old, _keeps(labels, old))


def fit_head(features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, seen: Matrix) -> Fitted:
    """Fit a last layer to labelled cells, and score it by nested cross-validation.

    Args:
        features: (n, d) of the labelled cells.
        labels: (n,), indices of classes.
        groups: patient or slide of each; cells of one group are never on both sides of a fold.
        old: the old layer, with a row for each class.
        seen: (m, d), features of all cells of that laboratory: their mean and spread standardise.

    Returns:
        The layer, and held-out answers.
    """
    axes, keeps, names = Axes.of(seen), _keeps(labels, old), np.array(groups)
    layer, trust = _fitted(axes, features, labels, groups, old, keeps)
    folds = [*folds_apart(labels, groups, _FOLDS)]
    if not folds:
        return Fitted(layer, trust, None)
    held_out = np.zeros((len(labels), len(old.bias)))
    for fitted, left in folds:
        inner, _ = _fitted(axes, features[fitted], labels[fitted], names[fitted].tolist(), old, keeps)
        held_out[left] = inner(features[left])
    return Fitted(layer, trust, held_out)


def _keeps(labels: Labels, old: Layer) -> bool:
    """Whether there are classes without labels, which are known from the old layer alone."""
    return len(np.unique(labels)) < len(old.bias)


def _fitted(
    axes: Axes, features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, keeps: bool
) -> tuple[Layer, float]:
    """The mixture of all choices by their weights, and the mean trust in the old layer."""
    low = axes(features)
    weights = _weigh(low, features, labels, groups, old, keeps)
    trust = sum(weight * choice.trust for choice, weight in weights.items())
    mixed = Layer(np.zeros_like(old.weights), np.zeros_like(old.bias))
    for smoothness in {choice.smoothness for choice in weights}:
        share = sum(weight for choice, weight in weights.items() if choice.smoothness == smoothness)
        if share > _NEGLIGIBLE:
            mixed = mixed.plus(axes.unfold(_fit(low, labels, len(old.bias), smoothness)), share)
    return mixed.plus(old, trust), trust


def _weigh(
    low: Matrix, features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, keeps: bool
) -> dict[Choice, float]:
    """The weight of each choice: its likelihood of held-out labels, where each class counts the same."""
    folds, before = [*folds_apart(labels, groups, _INNER_FOLDS)], old(features)
    if not folds:
        return {FEW: 1.0}
    losses, weights = dict[Choice, float](), _even(labels, len(old.bias))
    for smoothness in SMOOTHNESS:
        new = np.zeros_like(before)
        for fitted, left in folds:
            new[left] = _fit(low[fitted], labels[fitted], len(old.bias), smoothness)(low[left])
        for trust in TRUST:
            if trust or not keeps:
                losses[Choice(smoothness, trust)] = cross_entropy(new + trust * before, labels, weights)
    likelihoods = np.exp(-len(labels) * (np.array([*losses.values()]) - min(losses.values())))
    return dict(zip(losses, (likelihoods / likelihoods.sum()).tolist(), strict=True))


def _even(labels: Labels, classes: int) -> Matrix:
    """Weights of cells, (n,), with which each class counts the same."""
    weights: Matrix = class_weights(np.bincount(labels, minlength=classes))[labels]
    return weights


def _fit(features: Matrix, labels: Labels, classes: int, smoothness: float) -> Layer:
    return fit_logistic(features, labels, classes, smoothness, _even(labels, classes))
