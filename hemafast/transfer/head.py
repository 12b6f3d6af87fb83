"""A last layer for another laboratory from few labels: logistic regression on features, mixed with the old layer.

The likelihoods of both are multiplied: logits are `trust` times those of the old layer plus those of the new one. How
much the old layer is trusted, and how smooth the new one is, is weighed by cross-validation within the labels, groups
apart: each choice counts by the likelihood that it gives to labels it has not seen. A sum of linear layers is a linear
layer, so the mixture of all choices is an ordinary one.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.folds import folds_apart

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SMOOTHNESS = (0.0003, 0.003, 0.03, 0.3)
"""C of the logistic regression on standardised features: the smaller, the smoother."""
TRUST = (0.0, 0.5, 1.0, 2.0)
_FOLDS, _INNER_FOLDS = 4, 3
_MOST_AXES = 256  # principal axes of the features: more cost time and change nothing
_ITERATIONS = 300
_NEGLIGIBLE = 1e-3  # weight of a choice


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer."""

    weights: Matrix
    """(classes, d)."""
    bias: Matrix
    """(classes,)."""

    def __call__(self, features: Matrix) -> Matrix:
        """Logits (n, classes) of features (n, d)."""
        return features @ self.weights.T + self.bias

    def of(self, classes: Sequence[int]) -> Layer:
        """The rows of some classes."""
        return Layer(self.weights[list(classes)], self.bias[list(classes)])

    def plus(self, other: Layer, trust: float) -> Layer:
        """This layer and `trust` times the other one."""
        return Layer(self.weights + trust * other.weights, self.bias + trust * other.bias)


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
    axes = _Axes.of(seen)
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
    axes, keeps, names = _Axes.of(seen), _keeps(labels, old), np.array(groups)
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
    axes: _Axes, features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, keeps: bool
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
    losses: dict[Choice, float] = {}
    for smoothness in SMOOTHNESS:
        new = np.zeros_like(before)
        for fitted, left in folds:
            new[left] = _fit(low[fitted], labels[fitted], len(old.bias), smoothness)(low[left])
        for trust in TRUST:
            if trust or not keeps:
                losses[Choice(smoothness, trust)] = _loss(new + trust * before, labels)
    likelihoods = np.exp(-len(labels) * (np.array([*losses.values()]) - min(losses.values())))
    return dict(zip(losses, (likelihoods / likelihoods.sum()).tolist(), strict=True))


def _loss(logits: Matrix, labels: Labels) -> float:
    from scipy.special import log_softmax

    of_label = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return -float(np.mean([of_label[labels == label].mean() for label in np.unique(labels)]))


def _fit(features: Matrix, labels: Labels, classes: int, smoothness: float) -> Layer:
    """Logistic regression in which each class counts the same; a class without labels gets the mean of the others."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    layer = Layer(np.zeros((classes, features.shape[1])), np.zeros(classes))
    if len(present) < 2:
        return layer
    model = LogisticRegression(C=smoothness, class_weight="balanced", max_iter=_ITERATIONS, tol=1e-3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels)
    weights, bias = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn gives one row: the second class against the first
        weights, bias = np.vstack([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    layer.weights[present] = weights - weights.mean(axis=0)
    layer.bias[present] = bias - bias.mean()
    return layer


@dataclass(frozen=True, slots=True)
class _Axes:
    """Standardised features along their principal axes."""

    mean: Matrix
    to_axes: Matrix
    """(d, axes)."""

    @classmethod
    def of(cls, features: Matrix) -> _Axes:
        mean = features.mean(axis=0)
        spread = features.std(axis=0)
        scale = 1 / np.where(spread > 1e-6 * max(spread.max(), 1e-30), spread, np.inf)
        _, _, axes = np.linalg.svd((features - mean) * scale, full_matrices=False)
        return cls(mean, scale[:, None] * axes[:_MOST_AXES].T)

    def __call__(self, features: Matrix) -> Matrix:
        return (features - self.mean) @ self.to_axes

    def unfold(self, layer: Layer) -> Layer:
        """The same layer on features as they are."""
        weights = layer.weights @ self.to_axes.T
        return Layer(weights, layer.bias - weights @ self.mean)
