"""Two results of a bench, station by station: how much faster, and whether that is more than noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hemafast.bench.stations import COPY, PRODUCT

CONTROLS = (PRODUCT, COPY)
"""No change of ours touches these: where they moved, the machine did."""

_SETTINGS = ("model", "image_size", "batch_size", "loader_batch_size", "threads", "device", "amp", "compile")
_MACHINE = ("processor", "cores", "gpu", "torch", "nvidia-dali-cuda120")


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one station's rate."""

    station: str
    ratio: float
    """After over before, of geometric means."""
    low: float
    high: float
    """95 % interval of the ratio."""

    @property
    def verdict(self) -> str:
        """ "faster" or "slower", or "within noise" where the interval holds 1."""
        if self.low <= 1 <= self.high:
            return "within noise"
        return "faster" if self.ratio > 1 else "slower"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two results side by side."""

    changes: list[Change]
    missing: list[str]
    """Stations that only one of them has."""
    differences: list[str]
    """What else differs: settings, data, machine, versions."""

    def lines(self) -> list[str]:
        """What else must be known to read the ratios."""
        moved = [one for one in self.changes if one.station in CONTROLS and one.verdict != "within noise"]
        return [
            *(f"not the same: {text}" for text in self.differences),
            *(f"only one of them has {name}" for name in self.missing),
            *(f"the machine itself was {one.verdict}: {one.station} {one.ratio:.2f}x" for one in moved),
        ]


def compare(before: dict[str, Any], after: dict[str, Any]) -> Comparison:
    """Ratios of rates with Welch's 95 % interval on their logarithms, whose rounds are taken for independent."""
    then, now = before["stations"], after["stations"]
    common = [name for name in then if name in now]
    return Comparison(
        changes=[_change(name, then[name], now[name]) for name in common],
        missing=[name for name in {**then, **now} if name not in common],
        differences=_differences(before, after),
    )


def _change(name: str, before: dict[str, Any], after: dict[str, Any]) -> Change:
    from scipy.stats import ttest_ind

    first, second = (_log_rates(station) for station in (before, after))
    if len({*first}) == len({*second}) == 1:  # without any spread there is no interval
        ratio = math.exp(second[0] - first[0])
        return Change(name, ratio, ratio, ratio)
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    ratio = math.exp(sum(second) / len(second) - sum(first) / len(first))
    return Change(name, ratio, math.exp(interval.low), math.exp(interval.high))


def _log_rates(station: dict[str, Any]) -> list[float]:
    return [math.log(one["images"] / one["seconds"]) for one in station["rounds"]]


def _differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    pairs = [
        *((name, before["bench"].get(name), after["bench"].get(name)) for name in _SETTINGS),
        ("data", before["data"]["fingerprint"], after["data"]["fingerprint"]),
        *((name, before["machine"].get(name), after["machine"].get(name)) for name in _MACHINE),
    ]
    return [f"{name}: {then} before, {now} after" for name, then, now in pairs if then != now]
