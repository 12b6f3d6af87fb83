"""Logistic regression on features as a linear layer, and the axes along which features are looked at."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

_ITERATIONS = 300
_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Layer:
    """A linear layer."""

    weights: Matrix
    """(classes, d)."""
    bias: Matrix
    """(classes,)."""

    def __call__(self, features: Matrix) -> Matrix:
        """Logits (..., classes) of features (..., d)."""
        return features @ self.weights.T + self.bias

    def of(self, classes: Sequence[int]) -> Layer:
        """The rows of some classes."""
        return Layer(self.weights[list(classes)], self.bias[list(classes)])

    def plus(self, other: Layer, trust: float) -> Layer:
        """This layer and `trust` times the other one."""
        return Layer(self.weights + trust * other.weights, self.bias + trust * other.bias)


@dataclass(frozen=True, slots=True)
class Axes:
    """Standardised features along their principal axes."""

    mean: Matrix
    to_axes: Matrix
    """(d, axes)."""

    @classmethod
    def of(cls, features: Matrix, most: int = 256) -> Axes:
        """The `most` principal axes of features (n, d); more cost time and change nothing."""
        mean = features.mean(axis=0)
        spread = features.std(axis=0)
        scale = 1 / np.where(spread > 1e-6 * max(spread.max(), 1e-30), spread, np.inf)
        standard = (features - mean) * scale
        if len(standard) > standard.shape[1]:
            _, rising = np.linalg.eigh((standard.T @ standard).astype(np.float64))
            axes = rising[:, ::-1].T
        else:
            _, _, axes = np.linalg.svd(standard, full_matrices=False)
        return cls(mean, scale[:, None] * axes[:most].T)

    def __call__(self, features: Matrix) -> Matrix:
        """Features (..., d) along the axes, (..., axes)."""
        return (features - self.mean) @ self.to_axes

    def unfold(self, layer: Layer) -> Layer:
        """The same layer on features as they are."""
        weights = layer.weights @ self.to_axes.T
        return Layer(weights, layer.bias - weights @ self.mean)


def cross_entropy(logits: Matrix, labels: Labels, weights: Matrix) -> float:
    """Mean over images of the negative logarithm of the probability of the true class, times their weights.

    Args:
        logits: (n, classes).
        labels: (n,), indices of classes.
        weights: (n,), how much each image counts.
    """
    from scipy.special import log_softmax

    return float(-(weights * log_softmax(logits, axis=1)[np.arange(len(labels)), labels]).mean())


def fit_logistic(
    features: Matrix, labels: Labels, classes: int, smoothness: float, weights: Matrix | None = None
) -> Layer:
    """Logistic regression; a class without labels gets the mean of the others.

    Args:
        features: (n, d).
        labels: (n,), indices of classes.
        classes: number of classes.
        smoothness: C of scikit-learn: the smaller, the smoother.
        weights: (n,), how much each label counts; None for all the same.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    present = np.unique(labels)
    layer = Layer(np.zeros((classes, features.shape[1])), np.zeros(classes))
    if len(present) < 2:
        return layer
    model = LogisticRegression(C=smoothness, max_iter=_ITERATIONS, tol=_TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(features, labels, weights)
    slopes, bias = model.coef_, model.intercept_
    if len(present) == 2:  # scikit-learn gives one row: the second class against the first
        slopes, bias = np.vstack([-slopes, slopes]) / 2, np.concatenate([-bias, bias]) / 2
    layer.weights[present] = slopes - slopes.mean(axis=0)
    layer.bias[present] = bias - bias.mean()
    return layer
