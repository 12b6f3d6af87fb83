"""How long a run is, in epochs or in seconds. The learning rate schedule and the image sizes follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TICKS = 10_000
"""Of a time budget."""

_REPORT = 0.9  # evaluation and report besides a pass over the validation images, in CPU seconds of the start


class Counters(Protocol):
    """The part of the run's state that a duration reads."""

    steps_done: int
    epochs_done: int
    elapsed: float
    ending: float


class Duration(Protocol):
    """From the first update to the last, divided into ticks."""

    @property
    def ticks(self) -> int:
        """All ticks of the run."""

    def tick(self, counters: Counters) -> int:
        """Ticks done so far, at most all of them."""

    def over(self, counters: Counters) -> bool:
        """Whether the last update is done."""


@dataclass(frozen=True, slots=True)
class EpochCount:
    """A fixed number of epochs, each with the same number of updates."""

    epochs: int
    updates: int

    @property
    def ticks(self) -> int:
        """One per update."""
        return self.epochs * self.updates

    def tick(self, counters: Counters) -> int:
        """The updates done."""
        return counters.steps_done

    def over(self, counters: Counters) -> bool:
        """All epochs are done."""
        return counters.epochs_done >= self.epochs


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """As many updates as fit into `budget` seconds, minus the time that validation and report need at the end."""

    budget: float
    ticks: int = TICKS

    def tick(self, counters: Counters) -> int:
        """In proportion to the time used."""
        usable = self.budget - counters.ending
        return self.ticks if counters.elapsed >= usable else int(self.ticks * counters.elapsed / usable)

    def over(self, counters: Counters) -> bool:
        """No time is left for updates. At least one is made in any case."""
        return counters.steps_done > 0 and self.tick(counters) >= self.ticks


def size_at(tick: int, ticks: int, sizes: Sequence[int]) -> int:
    """The image size at `tick`; all `sizes` get equal shares of the ticks."""
    return sizes[min(tick * len(sizes) // ticks, len(sizes) - 1)]


def seconds_to_end(validation: float, size: int, full_size: int, starting: float) -> float:
    """What comes after the last update, from the `validation` seconds at `size`: validation at full size, the same
    once more by the evaluation of the best epoch, and the report.

    Importing and building kept a core busy for `starting` seconds: where that is slow, scoring and drawing will be.
    """
    return 2 * validation * (full_size / size) ** 2 + _REPORT * starting
