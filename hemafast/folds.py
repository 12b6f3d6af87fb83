"""Folds of cells for cross-validation: cells of one group, such as a patient, are never on both sides."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]


def folds_apart(labels: Places, groups: Sequence[str], most: int, seed: int = 0) -> Iterator[tuple[Places, Places]]:
    """Places of cells to fit on, and of those held out, for each fold.

    Args:
        labels: (n,), indices of classes.
        groups: patient or slide of each cell.
        most: number of folds; fewer if no class has cells of so many groups.
        seed: of the division.

    Returns:
        The folds that have two classes to fit on. None if no class has cells of two groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    named = np.array(groups)
    of_class = [len(np.unique(named[labels == label])) for label in np.unique(labels)]
    number = min(most, max(of_class, default=0))
    if number < 2:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes with fewer cells than folds
        splits = StratifiedGroupKFold(number, shuffle=True, random_state=seed).split(labels, labels, named)
        yield from ((fitted, left) for fitted, left in splits if len(np.unique(labels[fitted])) > 1 and len(left))
