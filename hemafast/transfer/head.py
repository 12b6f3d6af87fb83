"""A last layer for another laboratory from few labels: logistic regression on features, mixed with the old layer.

The likelihoods of both are multiplied: logits are `trust` times those of the old layer plus those of the new one. A
sum of linear layers is a linear layer, so the mixture is an ordinary one. How much the old layer is trusted, and how
smooth the new one is, is chosen by cross-validation within the labels, groups apart.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

SMOOTHNESS = (0.0003, 0.003, 0.03, 0.3)
"""C of the logistic regression on standardised features: the smaller, the smoother."""
TRUST = (0.0, 0.5, 1.0, 2.0)
_FOLDS, _INNER_FOLDS = 4, 3
_MOST_AXES = 256  # principal axes of the features: more cost time and change nothing
_ITERATIONS = 300


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

    def plus(self, other: Layer, trust: float) -> Layer:
        """This layer and `trust` times the other one."""
        return Layer(self.weights + trust * other.weights, self.bias + trust * other.bias)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a new layer is made."""

    smoothness: float
    trust: float


FEW = Choice(smoothness=0.003, trust=1.0)
"""Where there are too few labels to choose."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """A last layer, and what it and the old one answer for cells that it was not fitted on."""

    layer: Layer
    choice: Choice
    held_out: Matrix | None
    """Logits (n, classes) of each labelled cell from a layer fitted without its fold; None if labels are too few."""


def with_new_classes(old: Layer, added: int) -> Layer:
    """The old layer with rows for classes that it lacks: it has no opinion on them, the mean of all others."""
    weights = np.vstack([old.weights, np.repeat(old.weights.mean(axis=0)[None], added, axis=0)])
    return Layer(weights, np.concatenate([old.bias, np.repeat(old.bias.mean(), added)]))


def fit_head(features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, seen: Matrix) -> Fitted:
    """Fit a last layer to labelled cells.

    Args:
        features: (n, d) of the labelled cells.
        labels: (n,), indices of classes.
        groups: patient or slide of each; cells of one group are never on both sides of a fold.
        old: the old layer, with a row for each class.
        seen: (m, d), features of all cells of that laboratory: their mean and spread standardise.

    Returns:
        The layer, and held-out answers from nested cross-validation.
    """
    axes = _Axes.of(seen)
    low = axes(features)
    keeps = len(np.unique(labels)) < len(old.bias)  # classes without labels are known from the old layer alone
    folds = [*_folds(labels, groups, _FOLDS)]
    choice = _choose(low, features, labels, groups, old, keeps=keeps)
    layer = axes.unfold(_fit(low, labels, len(old.bias), choice.smoothness)).plus(old, choice.trust)
    if not folds:
        return Fitted(layer, choice, None)
    held_out = np.zeros((len(labels), len(old.bias)))
    names = np.array(groups)
    for fitted, left in folds:
        inner = _choose(low[fitted], features[fitted], labels[fitted], names[fitted].tolist(), old, keeps=keeps)
        new = _fit(low[fitted], labels[fitted], len(old.bias), inner.smoothness)
        held_out[left] = new(low[left]) + inner.trust * old(features[left])
    return Fitted(layer, choice, held_out)


def _choose(low: Matrix, features: Matrix, labels: Labels, groups: Sequence[str], old: Layer, *, keeps: bool) -> Choice:
    """The choice with the least loss on held-out cells, where each class counts the same."""
    folds, before = [*_folds(labels, groups, _INNER_FOLDS)], old(features)
    if not folds:
        return FEW
    losses: dict[Choice, float] = {}
    for smoothness in SMOOTHNESS:
        new = np.zeros_like(before)
        for fitted, left in folds:
            new[left] = _fit(low[fitted], labels[fitted], len(old.bias), smoothness)(low[left])
        for trust in TRUST:
            if trust or not keeps:
                losses[Choice(smoothness, trust)] = _loss(new + trust * before, labels)
    return min(losses, key=lambda choice: losses[choice])


def _loss(logits: Matrix, labels: Labels) -> float:
    from scipy.special import log_softmax

    of_label = log_softmax(logits, axis=1)[np.arange(len(labels)), labels]
    return -float(np.mean([of_label[labels == label].mean() for label in np.unique(labels)]))


def _folds(labels: Labels, groups: Sequence[str], most: int) -> Iterator[tuple[Labels, Labels]]:
    """Places to fit on and to hold out; none if no class has two groups."""
    from sklearn.model_selection import StratifiedGroupKFold

    places = {
        label: {group for group, own in zip(groups, labels, strict=True) if own == label} for label in set(labels)
    }
    number = min(most, max(map(len, places.values())), len(set(groups)))
    if number < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer cells than folds
        splits = StratifiedGroupKFold(number, shuffle=True, random_state=0).split(labels, labels, groups)
        yield from ((fitted, left) for fitted, left in splits if len(np.unique(labels[fitted])) > 1 and len(left))


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
