"""Count the cells of each patient, and say what is uncertain about the count."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.adjusted import FEW, adjusted_shares
from hemafast.evaluate.differential import CONVENTIONS, call_of, counts_of, differential
from hemafast.evaluate.intervals import interval, plain
from hemafast.evaluate.likeness import judge
from hemafast.lineage import packaged_lineage
from hemafast.patients.cells import Cells
from hemafast.patients.known import by_labels
from hemafast.taxonomy import COUNTED_APART
from hemafast.words import counted

BLAST_PERCENT = 20.0
"""From so many percent of blasts on, acute myeloid leukaemia is diagnosed where no gene defines it (WHO 2022)."""

Patient = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counting:
    """How cells are counted."""

    apart: Sequence[str] = COUNTED_APART
    """Classes that are no leukocytes."""
    convention: int = CONVENTIONS[0]
    """Leukocytes that the laboratory counts."""
    limits: Mapping[str, float] = field(default_factory=dict)
    """Percent by class, of which each patient is said to be above or below. If empty, blasts have one."""
    adjust: bool = False
    """Whether percentages are corrected for the mistakes at home."""

    def checked(self, classes: Sequence[str]) -> Counting:
        """With a limit for blasts. Raises HemafastError for an unknown class or a limit out of range."""
        if self.convention not in CONVENTIONS:
            raise HemafastError(f"A differential of {self.convention} cells is unknown.", "Choose 100 or 200.")
        given = set(self.apart) - set(COUNTED_APART)
        if unknown := [name for name in (*given, *self.limits) if name not in classes]:
            raise HemafastError(f"There is no class {unknown[0]}.", f"Choose from {name_some(list(classes), 12)}.")
        for name, limit in self.limits.items():
            if name in self.apart:
                raise HemafastError(f"{name} is no leukocyte, and has no percentage.", "Leave out its limit.")
            if not 0 < limit <= 100:
                raise HemafastError(f"{name}={limit:g} is no percentage.", "Give more than 0 and at most 100.")
        blast = packaged_lineage().blast
        usual = {blast: BLAST_PERCENT} if blast and blast in classes and blast not in self.apart else {}
        return Counting(
            apart=self.apart, convention=self.convention, limits=dict(self.limits) or usual, adjust=self.adjust
        )

    def among(self, classes: Sequence[str]) -> list[str]:
        """The leukocytes among the classes."""
        return [name for name in classes if name not in self.apart]


def count_patients(cells: Cells, counting: Counting) -> list[Patient]:
    """The count of each patient, in the order of their names.

    Args:
        cells: as `read_cells` gives them.
        counting: how to count, `checked`.

    Returns:
        Of each patient: `patient`, `domains`, `images`, `unreadable`, `uncalled` (read, and without a call), `cells`
        (with a call), `uncertain` and `unlike` (how many of the cells), what `differential` gives, `calls` (by class:
        limit and call), `adjusted` (by class: percent and ci95), `known` (the same cells by their labels), and `notes`.

    Raises:
        HemafastError: percentages shall be adjusted, and no validation images are known.
    """
    if counting.adjust and cells.home is None:
        raise HemafastError(
            f"The mistakes at home are not known for {cells.source}.", "Name an evaluated run, or leave out --adjust."
        )
    known = cells.table[cells.table["patient"] != ""]
    groups = sorted(known.groupby("patient"), key=lambda one: natural(str(one[0])))
    return [_count(str(name), rows, cells, counting) for name, rows in groups]


def natural(name: str) -> tuple[int, int, str]:
    """A key that sorts 2 before 10, and numbers before names."""
    return (0, int(name), name) if name.isascii() and name.isdecimal() else (1, 0, name)


def _count(name: str, rows: pd.DataFrame, cells: Cells, counting: Counting) -> Patient:
    readable = rows[rows["error"] == ""]
    called = readable[readable["predicted"] != ""]
    counts = counts_of(called["predicted"], cells.classes)
    found = differential(counts, counting.apart, counting.convention)
    judged = judge(_likenesses(readable), cells.home_images)
    adjusted = _adjusted(rows, counts, cells, counting) if counting.adjust else None
    patient = {
        "patient": name,
        "domains": sorted(set(rows["domain"]) - {""}),
        "images": len(rows),
        "unreadable": len(rows) - len(readable),
        "uncalled": len(readable) - len(called),
        "cells": len(called),
        "uncertain": int((called["confidence"] < cells.threshold).sum()),
        "unlike": judged["alarms"],
        "is_unlike": judged["unlike"],
        **found,
        "adjusted": adjusted,
        "calls": _calls(found["classes"] if adjusted is None else adjusted, counting.limits),
        "known": by_labels(called, cells.classes, counting.apart, counting.limits),
    }
    return {**patient, "notes": _notes(patient, counting)}


def _likenesses(rows: pd.DataFrame) -> npt.NDArray[np.float32]:
    """(n, 3) as `judge` takes them; tables hold likeness as a whole alone, which stands for its parts."""
    return np.repeat(rows["likeness"].to_numpy(np.float32)[:, None], 3, axis=1)


def _calls(shares: Mapping[str, Any], limits: Mapping[str, float]) -> dict[str, Any]:
    return {name: {"limit": limit, "call": call_of(shares[name]["ci95"], limit)} for name, limit in limits.items()}


def _adjusted(rows: pd.DataFrame, counts: Mapping[str, int], cells: Cells, counting: Counting) -> dict[str, Any]:
    """Percent of the leukocytes by class; the patient's own images are not among those of home."""
    assert cells.home is not None
    home = cells.home[~cells.home["image"].isin(rows["image"]) & (cells.home["label"] != "")]
    shares = adjusted_shares(np.array([*counts.values()], np.int64), _confusion(home, cells.classes))
    kept = [place for place, name in enumerate(cells.classes) if name not in counting.apart]
    whole = shares[:, kept].sum(axis=1, keepdims=True)
    percent = np.where(whole > 0, 100 * shares[:, kept] / np.where(whole > 0, whole, 1), np.nan)
    ends = interval(percent)
    return {
        cells.classes[place]: {
            "percent": plain(percent[0, column]),
            "ci95": None if np.isnan(ends[:, column]).any() else plain(ends[:, column]),
        }
        for column, place in enumerate(kept)
    }


def _confusion(home: pd.DataFrame, classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """(classes, classes): images of home by label and by call."""
    kept = home[home["label"].isin(classes) & home["predicted"].isin(classes)]
    place = {name: at for at, name in enumerate(classes)}
    pairs = kept["label"].map(place).to_numpy(np.int64) * len(classes) + kept["predicted"].map(place).to_numpy(np.int64)
    return np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), len(classes))


def hardly_known(cells: Cells) -> list[str]:
    """Classes of which so few validation images are known that their adjusted percentages mean little."""
    if cells.home is None:
        return []
    images = counts_of(cells.home["label"], cells.classes)
    return [name for name, count in images.items() if count < FEW]


def _notes(patient: Patient, counting: Counting) -> list[str]:
    """What a reader of the count should know, in sentences without a full stop."""
    leukocytes, of = patient["leukocytes"], counted(patient["cells"], "cell")
    said = []
    if not leukocytes:
        said.append("no leukocyte was found: there are no percentages")
    elif leukocytes < counting.convention:
        said.append(f"{counted(leukocytes, 'leukocyte')}: fewer than the {counting.convention} of a differential")
    if patient["unreadable"]:
        said.append(f"{patient['unreadable']} of {counted(patient['images'], 'image')} cannot be read")
    if patient["uncalled"]:
        said.append(f"{counted(patient['uncalled'], 'cell was', 'cells were')} not named, and not counted")
    if patient["uncertain"]:
        said.append(f"{patient['uncertain']} of {of} are uncertain")
    if patient["is_unlike"]:
        said.append(f"{patient['unlike']} of {counted(patient['images'], 'image')} are unlike those of training")
    if len(patient["domains"]) > 1:
        said.append(f"images of {counted(len(patient['domains']), 'laboratory')}: {name_some(patient['domains'], 4)}")
    return said


def lacking(patients: Collection[Patient], cells: Cells) -> list[str]:
    """Notes on images and laboratories as a whole."""
    nobody = int((cells.table["patient"] == "").sum())
    said = [f"{counted(nobody, 'image has', 'images have')} no patient, and no count"] if nobody else []
    several = [one["patient"] for one in patients if len(one["domains"]) > 1]
    if several:
        said.append(
            f"{name_some(several, 4)}: of several laboratories. If these are different people of one name, rename them"
        )
    return said
