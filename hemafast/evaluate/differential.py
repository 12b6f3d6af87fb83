"""The differential count of one patient: classes in percent of the leukocytes, with Wilson's intervals.

Erythroblasts are no leukocytes. They are counted beside the others and given per 100 leukocytes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from hemafast.evaluate.intervals import wilson

CONVENTIONS = (100, 200)
"""Leukocytes that laboratories count for a differential."""

Call = Literal["above", "below", "open"]
"""Whether a share is at least a limit, is less, or may be either."""


def differential(counts: Mapping[str, int], apart: Collection[str], convention: int = CONVENTIONS[0]) -> dict[str, Any]:
    """The differential of counted cells.

    Args:
        counts: cells by class.
        apart: classes that are no leukocytes.
        convention: leukocytes that the laboratory counts; `reported` percentages come in its steps.

    Returns:
        `leukocytes`, their number. `classes`: by name `count`, `percent` of the leukocytes, its 95 % interval `ci95`,
        and `reported`, which adds up to 100 over the classes. `apart`: by name `count`, `per_100` leukocytes and its
        `ci95`, which may exceed 100. Without leukocytes, all but counts are None.
    """
    among = {name: count for name, count in counts.items() if name not in apart}
    leukocytes = sum(among.values())
    steps = reported([*among.values()], convention)
    return {
        "leukocytes": leukocytes,
        "classes": {
            name: {**_percent(count, leukocytes), "reported": step}
            for (name, count), step in zip(among.items(), steps, strict=True)
        },
        "apart": {name: _per_100(count, leukocytes) for name, count in counts.items() if name in apart},
    }


def reported(counts: Sequence[int], convention: int) -> list[float | None]:
    """Percentages as a laboratory writes them that counts `convention` cells: whole steps that add up to 100.

    Each class gets the steps that it fills, and those left go to the largest remainders (Hamilton's method). None if
    there are no cells.
    """
    total = sum(counts)
    if not total:
        return [None] * len(counts)
    filled = [count * convention // total for count in counts]
    rest = [count * convention % total for count in counts]
    by_rest = sorted(range(len(counts)), key=lambda place: (-rest[place], -counts[place], place))
    for place in by_rest[: convention - sum(filled)]:
        filled[place] += 1
    return [steps * 100 / convention for steps in filled]


def call_of(ends: Sequence[float] | None, limit: float) -> Call:
    """What an interval says of a limit, both in percent: `open` if it holds the limit, or is not known."""
    if ends is None or ends[0] < limit <= ends[1]:
        return "open"
    return "above" if ends[0] >= limit else "below"


def counts_of(names: npt.ArrayLike, classes: Sequence[str]) -> dict[str, int]:
    """How many of the `names` are each class."""
    found, numbers = np.unique(np.asarray(names, dtype=str), return_counts=True)
    known = dict(zip(found.tolist(), numbers.tolist(), strict=True))
    return {name: int(known.get(name, 0)) for name in classes}


def _percent(count: int, leukocytes: int) -> dict[str, Any]:
    if not leukocytes:
        return {"count": count, "percent": None, "ci95": None}
    ends = wilson(count, leukocytes)
    return {"count": count, "percent": 100 * count / leukocytes, "ci95": ends and [100 * end for end in ends]}


def _per_100(count: int, leukocytes: int) -> dict[str, Any]:
    """A number per 100 leukocytes: the odds of Wilson's interval of its share among both."""
    if not leukocytes:
        return {"count": count, "per_100": None, "ci95": None}
    ends = wilson(count, count + leukocytes)
    odds = ends and [100 * end / (1 - end) for end in ends]
    return {"count": count, "per_100": 100 * count / leukocytes, "ci95": odds}
