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
from hemafast.files import TABLES
from hemafast.preparation.tables.read import read_table
from hemafast.reading import cause
from hemafast.regular import read_regular

Probabilities = npt.NDArray[np.floating[Any]]
"""(images, classes), rows that add up to 1; a row of nan for an image without an answer."""

_NAMES = ("image", "domain", "label", "predicted")
"""Columns of text: a class may have a number for a name."""
_ANSWERS = ("image", "predicted")
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


def read_predictions(
    file: Path, *, labelled: bool = True
) -> tuple[pd.DataFrame, tuple[str, ...], npt.NDArray[np.float64]]:
    """Read a table, csv or another of TABLES: all columns, the classes, and the probabilities (images, classes).

    Raises HemafastError if `file` is not such a table. One that is not `labelled`, as `predict` writes it, may have
    images without an answer: an empty class, and nan.
    """
    try:
        table = _read(file)
        classes = tuple(name.removeprefix(PREFIX) for name in table.columns if name.startswith(PREFIX))
        _refuse_other_cells(table, classes, _NAMES if labelled else _ANSWERS)
        shares = table[["confidence", *(f"{PREFIX}{name}" for name in classes)]].replace("", np.nan).astype(np.float64)
        _refuse_no_shares(shares.to_numpy(), gaps=not labelled)
    except (OSError, ValueError) as error:
        said = " ".join(cause(error).split())[:200]
        raise HemafastError(f"{file} cannot be read ({said}).", "Run `hemafast evaluate` again.") from error
    return table.assign(confidence=shares["confidence"]), classes, shares.iloc[:, 1:].to_numpy()


def _read(file: Path) -> pd.DataFrame:
    """All columns. Those of csv have numbers; other tables that `predict` writes are all text."""
    if file.suffix.lower() in set(TABLES) - {".csv"}:
        return read_table(file).reset_index(drop=True)
    content = io.BytesIO(read_regular(file))
    return pd.read_csv(content, keep_default_na=False, encoding="utf-8-sig", dtype=dict.fromkeys(_NAMES, str))


def _refuse_other_cells(table: pd.DataFrame, classes: tuple[str, ...], names: Sequence[str]) -> None:
    """Raise ValueError for columns that are missing, images that are there twice, and classes without a column."""
    missing = [name for name in (*names, "confidence") if name not in table.columns]
    if missing or not classes:
        raise ValueError(f"it has no column {(*missing, f'{PREFIX}CLASS')[0]}")
    if table["image"].duplicated().any():
        raise ValueError(f"{table['image'][table['image'].duplicated()].iloc[0]!r} is there twice")
    for name in {"label", "predicted"}.intersection(names):
        others = sorted(set(table[name]) - {*classes, *([] if "label" in names else [""])})
        if others:
            raise ValueError(f"column {name} has {others[0]!r}, which is no class of the table")


def _refuse_no_shares(values: Probabilities, *, gaps: bool) -> None:
    """Raise ValueError unless all numbers are between 0 and 1, or, with `gaps`, nan where there is no answer."""
    wrong = values[~((gaps & np.isnan(values)) | ((values >= 0) & (values <= 1)))]
    if len(wrong):
        raise ValueError(f"{wrong[0]:g} is no probability")
