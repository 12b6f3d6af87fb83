"""95 % intervals: bootstrap resamples of the images, all at once, and Wilson's interval of a share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Weights = npt.NDArray[np.float32]
"""(images, k): how often each image counts, in each of k resamples."""

RESAMPLES = 1000
_MOST_WEIGHTS = 2**24  # of one chunk: 64 MiB


def resample(
    images: int, resamples: int = RESAMPLES, seed: int = 0, groups: npt.NDArray[np.int64] | None = None
) -> Iterator[Weights]:
    """How often each image counts in each bootstrap resample, drawn with replacement (Efron 1979).

    Args:
        images: number of images; each resample draws as many.
        resamples: number of resamples.
        seed: of the draws.
        groups: (images,), from 0: the group of each image, such as its patient. Whole groups are drawn then, as many as
            there are; None draws single images.

    Returns:
        Chunks (images, columns) of 1 + `resamples` columns. The first column is all ones: the images themselves, so
        that one calculation gives a score and its interval.
    """
    generator = np.random.default_rng(seed)
    units = images if groups is None else int(groups.max(initial=-1)) + 1
    columns = max(1, _MOST_WEIGHTS // max(images, 1))
    for start in range(0, resamples + 1, columns):
        count = min(columns, resamples + 1 - start)
        drawn = generator.integers(0, max(units, 1), size=(units, count))
        cells = (drawn * count + np.arange(count)).ravel()
        weights = np.bincount(cells, minlength=units * count).reshape(units, count).astype(np.float32)
        weights = weights if groups is None else weights[groups]
        if start == 0:
            weights[:, 0] = 1
        yield weights


def interval(scores: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
    """Percentile interval (2, ...) of scores (1 + resamples, ...), the first of which is not a resample.

    Resamples without a score (nan) are left out.
    """
    resampled = scores[1:]
    if len(resampled) == 0:
        return np.full((2, *scores.shape[1:]), np.nan)
    unknown = np.isnan(resampled).all(axis=0)
    with np.errstate(invalid="ignore"):
        ends = np.nanpercentile(np.where(unknown, 0.0, resampled), [2.5, 97.5], axis=0)  # a column of nan would warn
    return np.where(unknown, np.nan, ends)


def with_intervals(scores: Mapping[str, npt.NDArray[np.floating[Any]]]) -> dict[str, Any]:
    """Plain scores of the images by name, and their intervals as `ci95`, from scores (1 + resamples, ...)."""
    return {
        **{name: plain(values[0]) for name, values in scores.items()},
        "ci95": {name: plain(interval(values)) for name, values in scores.items()},
    }


def wilson(hits: int, images: int) -> list[float] | None:
    """Wilson's interval of the share `hits` / `images`; None without images."""
    from scipy.stats import binomtest

    if not images:
        return None
    ends = binomtest(hits, images).proportion_ci(method="wilson")
    return [float(ends.low), float(ends.high)]


def plain(value: Any) -> Any:
    """numpy numbers as JSON takes them; None for what is not finite."""
    if np.ndim(value):
        return [plain(part) for part in value]
    return float(value) if np.isfinite(value) else None
