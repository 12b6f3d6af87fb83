"""Predictions as a table with one row per image, the same for `evaluate` and `predict`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.regular import read_regular

Probabilities = npt.NDArray[np.floating[Any]]
"""(images, classes), rows that add up to 1; a row of nan for an image without an answer."""

PREFIX = "p_"
"""Prefix of the columns of probabilities; the name of the class follows."""


def prediction_table(
    classes: Sequence[str], probabilities: Probabilities, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]
) -> pd.DataFrame:
    """`columns`, then predicted class, confidence, entropy (nats), and the probability of each class.

    An image without an answer (a row of nan) gets an empty class and no numbers.
    """
    answered: npt.NDArray[np.bool_] = np.isfinite(probabilities).all(axis=1)  # type: ignore[assignment]
    safe = np.where(answered[:, None], probabilities, 1.0)
    names = np.array([*classes], dtype=object)[safe.argmax(axis=1)]
    table = {
        **columns,
        "predicted": np.where(answered, names, ""),
        "confidence": np.where(answered, safe.max(axis=1), np.nan),
        "entropy": np.where(answered, entropy(safe), np.nan),
        **{f"{PREFIX}{name}": probabilities[:, index] for index, name in enumerate(classes)},
    }
    return pd.DataFrame(table)


def entropy(probabilities: Probabilities) -> Probabilities:
    """Entropy of each row in nats, (images,)."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1.0))
    return np.asarray(-(probabilities * logs).sum(axis=1)) + 0.0  # no -0.0


def read_predictions(file: Path) -> tuple[pd.DataFrame, tuple[str, ...], npt.NDArray[np.float64]]:
    """Read a table: all columns, the classes, and the probabilities (images, classes).

    Raises HemafastError if `file` is not such a table.
    """
    try:
        table = pd.read_csv(io.BytesIO(read_regular(file)), keep_default_na=False, encoding="utf-8-sig")
        classes = tuple(name.removeprefix(PREFIX) for name in table.columns if name.startswith(PREFIX))
        numbers = table[[f"{PREFIX}{name}" for name in classes]].replace("", np.nan).astype(np.float64)
    except (OSError, ValueError) as error:
        raise HemafastError(f"{file} cannot be read ({error}).", "Run `hemafast evaluate` again.") from error
    if not classes or not {"image", "predicted", "confidence"} <= set(table.columns):
        raise HemafastError(f"{file} is not a table of predictions.", "Run `hemafast evaluate` again.")
    return table, classes, numbers.to_numpy()
