"""Shares of classes, corrected for the mistakes that a model makes at home.

A model that takes every tenth monocyte for a lymphocyte finds too many lymphocytes in everybody. If it mistakes the
classes for each other here as often as at home, the shares that explain its calls best are known: adjusted counts
(Gart and Buck 1966 for two classes; Forman 2008, "Quantifying counts and costs via classification"), here as the
maximum of the likelihood, found by expectation maximisation, so that no share is negative.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import RESAMPLES

Shares = npt.NDArray[np.float64]

FEW = 20
"""Cells of a class at home, below which its mistakes are hardly known."""
_ROUNDS = 300
_TINY = 1e-12


def adjusted_shares(
    called: npt.NDArray[np.int64], home: npt.NDArray[np.int64], resamples: int = RESAMPLES, seed: int = 0
) -> Shares:
    """The shares of the classes among the cells of a patient.

    Args:
        called: (classes,), cells by the class that the model names.
        home: (classes, classes), cells at home by true class and by the class that the model names. A class without
            cells is taken to be always named rightly.
        resamples: number of resamples.
        seed: of the resamples.

    Returns:
        (1 + resamples, classes), rows that add up to 1. The first row is the answer. In the others the patient's cells
        and the cells of each class at home are drawn again (parametric bootstrap). Rows of nan without cells.
    """
    cells = int(called.sum())
    if not cells:
        return np.full((1 + resamples, len(called)), np.nan)
    generator = np.random.default_rng(seed)
    rates = _rates(home)
    drawn = np.stack(
        [_drawn(row, int(count), resamples, generator) for row, count in zip(rates, home.sum(axis=1), strict=True)],
        axis=1,
    )
    again = generator.multinomial(cells, called / cells, size=resamples)
    return _likeliest(np.concatenate([called[None], again]), np.concatenate([rates[None], drawn]))


def _rates(home: npt.NDArray[np.int64]) -> Shares:
    """(classes, classes): how often each class is named as each."""
    cells = home.sum(axis=1, keepdims=True)
    return np.where(cells > 0, home / np.maximum(cells, 1), np.eye(len(home)))


def _drawn(row: Shares, cells: int, resamples: int, generator: np.random.Generator) -> Shares:
    """(resamples, classes): the rates of one class at home, with as many cells drawn again."""
    return generator.multinomial(cells, row, size=resamples) / cells if cells else np.tile(row, (resamples, 1))


def _likeliest(called: npt.NDArray[np.int64], rates: Shares) -> Shares:
    """Shares (k, classes) under which the calls (k, classes) are likeliest, given rates (k, classes, classes)."""
    wanted = called / called.sum(axis=1, keepdims=True)
    shares = np.full(called.shape, 1 / called.shape[1])
    for _ in range(_ROUNDS):
        expected = np.einsum("kt,ktc->kc", shares, rates)
        shares = shares * np.einsum("ktc,kc->kt", rates, wanted / np.maximum(expected, _TINY))
        shares /= np.maximum(shares.sum(axis=1, keepdims=True), _TINY)
    return shares
