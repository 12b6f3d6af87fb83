"""Several sets of answers to the same images over the same resamples, for paired intervals of differences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import interval, plain, resample
from hemafast.evaluate.metrics import Confusions, confusions

Labels = npt.NDArray[np.int64]
Scores = npt.NDArray[np.float64]
"""(1 + resamples,): of the images, then of each resample."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A score and its 95 % interval; None if undefined."""

    value: float | None
    ci95: tuple[float | None, float | None]


def estimate(scores: Scores) -> Estimate:
    """One score with its percentile interval, from scores (1 + resamples,)."""
    low, high = plain(interval(scores))
    return Estimate(plain(scores[0]), (low, high))


def resampled_confusions(
    labels: Labels, answers: Mapping[str, Labels], classes: int, groups: Labels | None = None
) -> dict[str, Confusions]:
    """Confusion matrices of each of `answers` (images,) against `labels` (images,), all over the same resamples.

    Resamples are of images, or of their `groups` (images,), from 0.
    """
    parts: dict[str, list[Confusions]] = {name: [] for name in answers}
    for weights in resample(len(labels), groups=groups):
        for name, predicted in answers.items():
            parts[name].append(confusions(labels, predicted, weights, classes))
    return {name: replace(part[0], counts=np.concatenate([one.counts for one in part])) for name, part in parts.items()}
