"""Counts of patients beside what the labels of the same cells say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hemafast.evaluate.agreement import agreement, distances
from hemafast.evaluate.differential import counts_of, differential

Patient = Mapping[str, Any]


def by_labels(
    called: pd.DataFrame, classes: Sequence[str], apart: Collection[str], limits: Mapping[str, float]
) -> dict[str, Any] | None:
    """What labels say of the cells of a patient.

    Args:
        called: rows of `cells.Table` with a call.
        classes: of the model.
        apart: those that are no leukocytes.
        limits: percent by class, for calls.

    Returns:
        Of the cells with a label: `cells`, `right` (how many), `leukocytes`, `percent` and `per_100` by class, all by
        their labels; `counted`, the percentages by call; `distance` of both; `inside`, how many intervals of `counted`
        hold `percent`; and `calls`, above or below by class. What needs leukocytes is None or empty without. None
        without labels.
    """
    told = called[called["label"].isin(classes)]
    if told.empty:
        return None
    known, found = (differential(counts_of(told[column], classes), apart) for column in ("label", "predicted"))
    both = known["leukocytes"] and found["leukocytes"]
    one, other = (np.array([[row["percent"] for row in part["classes"].values()]], float) for part in (known, found))
    inside = [
        row["ci95"][0] <= known["classes"][name]["percent"] <= row["ci95"][1]
        for name, row in found["classes"].items()
        if both
    ]
    return {
        "cells": len(told),
        "right": int((told["label"] == told["predicted"]).sum()),
        "leukocytes": known["leukocytes"],
        "counted": [row["percent"] for row in found["classes"].values()] if both else None,
        "percent": {name: row["percent"] for name, row in known["classes"].items()},
        "per_100": {name: row["per_100"] for name, row in known["apart"].items()},
        "distance": float(distances(other, one)[0]) if both else None,
        "inside": sum(inside),
        "calls": {
            name: "above" if known["classes"][name]["percent"] >= limit else "below"
            for name, limit in limits.items()
            if both
        },
    }


def compare(patients: Sequence[Patient], among: Sequence[str], limits: Collection[str]) -> dict[str, Any] | None:
    """How the counts agree with the labels of the same cells.

    Args:
        patients: as `count_patients` gives them.
        among: the classes that are leukocytes.
        limits: the classes with calls.

    Returns:
        What `agreement` gives; `inside`, the share of the percentages whose interval holds the known one; `adjusted`,
        `agreement` of the adjusted percentages of patients of whom all cells have a label, or None; and `calls`, by
        class, how many are right, wrong and open. None if no patient has labels.
    """
    told = [one for one in patients if one["known"] and one["known"]["counted"]]
    if not told:
        return None
    known = np.array([[one["known"]["percent"][name] for name in among] for one in told], float)
    found = np.array([one["known"]["counted"] for one in told], float)
    return {
        **agreement(found, known, among),
        "inside": sum(one["known"]["inside"] for one in told) / (len(told) * len(among)),
        "adjusted": _of_adjusted(told, among),
        "calls": {name: _judged(told, name) for name in limits},
    }


def _of_adjusted(told: Sequence[Patient], among: Sequence[str]) -> dict[str, Any] | None:
    whole = [one for one in told if one["adjusted"] and one["known"]["cells"] == one["cells"]]
    if not whole:
        return None
    known = np.array([[one["known"]["percent"][name] for name in among] for one in whole], float)
    return agreement(
        np.array([[one["adjusted"][name]["percent"] for name in among] for one in whole], float), known, among
    )


def _judged(told: Sequence[Patient], name: str) -> dict[str, int]:
    calls = [(one["calls"][name]["call"], one["known"]["calls"][name]) for one in told]
    return {
        "right": sum(call == truth for call, truth in calls),
        "wrong": sum(call not in (truth, "open") for call, truth in calls),
        "open": sum(call == "open" for call, _ in calls),
    }
