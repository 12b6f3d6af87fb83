"""The learning rate as a function of the step, without a state to save."""

from __future__ import annotations

import math
from collections.abc import Callable

from hemafast.config import ScheduleName

Schedule = Callable[[int], float]
"""Learning rate of a step, counted from 0."""

_START = 25.0  # peak rate of a cycle, divided by its first rate
_END = 1e4  # first rate of a cycle, divided by its last rate


def build_schedule(name: ScheduleName, lr: float, steps: int, warmup: float | None = None) -> Schedule:
    """The schedule `name` over `steps`, with its peak at `lr`. The rate rises in the share `warmup` of the steps."""
    if name == "onecycle":
        return one_cycle(lr, steps, 0.3 if warmup is None else warmup)
    if name == "cosine":
        return cosine(lr, steps, 0.05 if warmup is None else warmup)
    return constant(lr, round((warmup or 0.0) * steps))


def constant(lr: float, rising: int = 0) -> Schedule:
    """The same rate at every step, after a linear rise over the first `rising` steps."""
    return lambda step: lr * min((step + 1) / (rising + 1), 1.0)


def cosine(peak: float, steps: int, warmup: float) -> Schedule:
    """Rise linearly over the share `warmup` of `steps`, then fall along a cosine to nearly zero.

    Loshchilov and Hutter, "SGDR" (arXiv 1608.03983), without restarts.
    """
    rising = round(warmup * steps)

    def rate(step: int) -> float:
        if step < rising:
            return peak * (step + 1) / (rising + 1)
        return _cosine(peak, 0.0, min((step - rising) / max(steps - rising, 1), 1.0))

    return rate


def one_cycle(peak: float, steps: int, warmup: float = 0.3) -> Schedule:
    """Rise to `peak` over the share `warmup` of `steps`, then anneal towards zero, both along a cosine.

    Smith and Topin, "Super-Convergence" (arXiv 1708.07120), with the constants of torch's OneCycleLR.
    """
    first = peak / _START
    last = first / _END
    top = warmup * steps - 1

    def rate(step: int) -> float:
        if step < top:
            return _cosine(first, peak, step / top)
        return _cosine(peak, last, min((step - top) / max(steps - 1 - top, 1), 1.0))

    return rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
