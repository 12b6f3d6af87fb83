"""Compare two results of a bench: how much faster each station is, and whether that is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hemafast.bench.result import COPY, PRODUCT

CONTROLS = (PRODUCT, COPY)
"""Stations that no change of the code touches. If they changed, the machine did."""

_SETTINGS = ("model", "image_size", "batch_size", "loader_batch_size", "threads", "device", "amp", "compile")
_LATER_SETTINGS = ("input", "compile_mode", "capture")
"""Settings that older results lack."""
_MACHINE = ("processor", "cores", "gpu", "torch", "nvidia-dali-cuda120", "nvidia-dali-cuda130")


@dataclass(frozen=True, slots=True)
class Change:
    """How the rate of one station changed."""

    station: str
    ratio: float
    """Geometric mean after, over geometric mean before."""
    low: float
    high: float
    """95 % interval of the ratio."""

    @property
    def verdict(self) -> str:
        """ "faster", "slower", or "within noise" if the interval contains 1."""
        if self.low <= 1 <= self.high:
            return "within noise"
        return "faster" if self.ratio > 1 else "slower"


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two results."""

    changes: list[Change]
    missing: list[str]
    """Stations that only one result has."""
    differences: list[str]
    """Other differences: settings, data, machine, versions."""

    def lines(self) -> list[str]:
        """Warnings about the ratios."""
        moved = [one for one in self.changes if one.station in CONTROLS and one.verdict != "within noise"]
        return [
            *(f"different: {text}" for text in self.differences),
            *(f"only one result has {name}" for name in self.missing),
            *(f"the machine itself was {one.verdict}: {one.station} {one.ratio:.2f}x" for one in moved),
        ]


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Ratios of rates with Welch's 95 % interval of their logarithms, as if rounds were independent."""
    then, now = before["stations"], after["stations"]
    common = [name for name in then if name in now]
    return Comparison(
        changes=[_change(name, then[name], now[name]) for name in common],
        missing=[name for name in {**then, **now} if name not in common],
        differences=_differences(before, after),
    )


def _change(name: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    from scipy.stats import ttest_ind

    first, second = (
        [math.log(one["images"] / one["seconds"]) for one in station["rounds"]] for station in (before, after)
    )
    if len({*first}) == len({*second}) == 1:  # without spread Welch's interval is undefined
        ratio = math.exp(second[0] - first[0])
        return Change(name, ratio, ratio, ratio)
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    ratio = math.exp(sum(second) / len(second) - sum(first) / len(first))
    return Change(name, ratio, math.exp(interval.low), math.exp(interval.high))


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    settings = (*_SETTINGS, *(name for name in _LATER_SETTINGS if name in before["bench"] and name in after["bench"]))
    pairs = [
        *((name, before["bench"].get(name), after["bench"].get(name)) for name in settings),
        ("data", before["data"]["fingerprint"], after["data"]["fingerprint"]),
        *((name, before["machine"].get(name), after["machine"].get(name)) for name in _MACHINE),
    ]
    return [f"{name}: {then} before, {now} after" for name, then, now in pairs if then != now]
