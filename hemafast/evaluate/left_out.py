"""What a regression on all other cells says of each cell: by a formula, without fitting it anew for each.

Ridge regression with a Gaussian kernel, from features to classes as 0 and 1. A square loss that is wrong by one at most
per wrong label bends less to wrong labels than a likelihood does, and what it says of a cell without its own label, or
without those of its patient, follows from the one fit to all (Allen 1974, PRESS).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.metrics import Labels
from hemafast.logistic import Axes, Matrix

_AXES = 512
_LANDMARKS = 2048  # cells that the others are compared with; as good as all of 2,865, and 26,000 take seconds
_WIDTH = 0.1  # of the kernel: its gamma, times the mean squared length of the features
_RIDGE = 0.1


@dataclass(frozen=True, slots=True)
class LeftOut:
    """The regression, for any labels of the same cells."""

    groups: tuple[npt.NDArray[np.int64], ...]
    """Rows of each patient, slide or set of copies."""
    mapped: Matrix
    """(cells, m), centred."""
    solved: Matrix
    """(m, cells): from labels to coefficients."""

    @classmethod
    def of(cls, features: Matrix, groups: Sequence[str]) -> LeftOut:
        """Prepare it for features (cells, d); no label has a part in it."""
        from sklearn.kernel_approximation import Nystroem

        low = Axes.of(features, _AXES)(features).astype(np.float64)
        gamma = _WIDTH / max(float((low**2).sum(axis=1).mean()), np.finfo(np.float64).tiny)
        mapped = Nystroem(gamma=gamma, n_components=min(_LANDMARKS, len(low)), random_state=0).fit_transform(low)
        mapped = mapped - mapped.mean(axis=0)
        solved = np.linalg.solve(mapped.T @ mapped + _RIDGE * np.eye(mapped.shape[1]), mapped.T)
        _, places = np.unique(np.array(groups), return_inverse=True)
        order = np.argsort(places, kind="stable")
        return cls(tuple(np.split(order, np.flatnonzero(np.diff(places[order])) + 1)), mapped, solved)

    def __call__(self, labels: Labels, classes: int) -> npt.NDArray[np.float64]:
        """Scores (cells, classes) of each cell, about 1 for its class and 0 for others, without labels of its group."""
        targets = np.eye(classes)[labels]
        wrong = targets - targets.mean(axis=0) - self.mapped @ (self.solved @ targets)
        scores = np.empty_like(targets)
        for rows in self.groups:
            own = self.mapped[rows] @ self.solved[:, rows] + 1 / len(labels)
            scores[rows] = targets[rows] - np.linalg.solve(np.eye(len(rows)) - own, wrong[rows])
        return scores
