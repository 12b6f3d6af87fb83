"""How far the differentials of patients are from what their labels say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import interval, plain, resample

Percent = npt.NDArray[np.float64]
"""(patients, classes), percent of the leukocytes of a patient."""

_FEWEST = 3  # patients that limits of agreement need
_LIMITS = 1.96  # standard deviations on each side: Bland and Altman 1986


def distances(counted: Percent, known: Percent) -> npt.NDArray[np.float64]:
    """(patients,): percent of the leukocytes that would have to change their class; half the sum of all differences."""
    return np.asarray(np.abs(counted - known).sum(axis=1) / 2)


def agreement(counted: Percent, known: Percent, classes: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Errors of the percentages over the patients.

    Args:
        counted: what the model counted.
        known: what the labels of the same cells say.
        classes: names of the leukocytes.
        seed: of the resamples.

    Returns:
        `patients`; `distance`, the mean of `distances`, with its 95 % interval over patients `ci95`; `classes`: by
        name, in percentage points, `error` (mean absolute difference), `bias` (mean difference, counted less known)
        and `limits` of agreement, between which 95 % of patients lie (Bland and Altman 1986; None for fewer than 3).
    """
    patients, apart = len(counted), counted - known
    far = distances(counted, known)[:, None]
    means = np.concatenate(
        [(weights * far).sum(axis=0) / weights.sum(axis=0) for weights in resample(patients, seed=seed)]
    )
    return {
        "patients": patients,
        "distance": plain(means[0]),
        "ci95": plain(interval(means)) if patients > 1 else None,
        "classes": {name: _of_class(apart[:, place]) for place, name in enumerate(classes)},
    }


def _of_class(apart: npt.NDArray[np.float64]) -> dict[str, Any]:
    bias, limits = float(apart.mean()), None
    if len(apart) >= _FEWEST:
        spread = _LIMITS * float(apart.std(ddof=1))
        limits = [bias - spread, bias + spread]
    return {"error": float(np.abs(apart).mean()), "bias": bias, "limits": limits}
