"""The learning rate as a function of the step; nothing to save and nothing to restore."""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]
"""Learning rate of a step, counted from 0."""

_WARM_UP = 0.3  # share of the steps that the rate rises
_START = 25.0  # the peak is this many times the first rate
_END = 1e4  # the first rate is this many times the last


def constant(lr: float) -> Schedule:
    """The same rate at every step."""
    return lambda step: lr


def one_cycle(peak: float, steps: int) -> Schedule:
    """Rise to `peak` over the first 30 % of `steps`, then anneal towards zero, both along a cosine.

    Smith and Topin, "Super-Convergence" (arXiv 1708.07120), with the constants of torch's OneCycleLR.
    """
    first = peak / _START
    last = first / _END
    top = _WARM_UP * steps - 1

    def rate(step: int) -> float:
        if step < top:
            return _cosine(first, peak, step / top)
        return _cosine(peak, last, min((step - top) / max(steps - 1 - top, 1), 1.0))

    return rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
