"""The bootstrap: how often each image is drawn, for all resamples at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
"""(images, k): how often each image counts, in each of k resamples."""

RESAMPLES = 1000
_MOST_WEIGHTS = 2**24  # of one chunk: 64 MiB


def resample(images: int, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Weights]:
    """How often each of `images` counts, in chunks of columns: the images as they are, then so many resamples.

    The first column is all ones, so that one calculation gives a score and what its interval is made of. A resample
    draws as many images as there are, with replacement (Efron 1979).
    """
    generator = np.random.default_rng(seed)
    columns = max(1, _MOST_WEIGHTS // max(images, 1))
    for start in range(0, resamples + 1, columns):
        count = min(columns, resamples + 1 - start)
        drawn = generator.integers(0, max(images, 1), size=(images, count))
        cells = (drawn * count + np.arange(count)).ravel()
        weights = np.bincount(cells, minlength=images * count).reshape(images, count).astype(np.float32)
        if start == 0:
            weights[:, 0] = 1
        yield weights


def interval(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Percentile interval of 95 % of scores (1 + resamples, ...), of which the first is no resample.

    Returns (2, ...); a resample in which a score has no meaning (nan) is left out of it.
    """
    resampled = scores[1:]
    if len(resampled) == 0 or np.isnan(resampled).all():
        return np.full((2, *scores.shape[1:]), np.nan)
    with np.errstate(invalid="ignore"):
        known = np.where(np.isnan(resampled).all(axis=0), 0.0, resampled)  # no warning for a column of nan
        ends = np.nanpercentile(known, [2.5, 97.5], axis=0)
    return np.where(np.isnan(resampled).all(axis=0), np.nan, ends)
