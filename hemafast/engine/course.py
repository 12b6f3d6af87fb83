"""How far a run is, counted in updates or in seconds: the schedule and the image sizes are laid over that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

TICKS = 10_000
"""Parts into which a time budget is cut."""

_REPORT = 0.9  # evaluation and report besides a pass over the validation images, in CPU seconds of the start


class Standing(Protocol):
    """Where a run stands, as far as a course has to know."""

    steps_done: int
    epochs_done: int
    elapsed: float
    ending: float


class Course(Protocol):
    """The way from the first update to the last, cut into ticks."""

    @property
    def ticks(self) -> int:
        """From the first update to the last."""

    def tick(self, standing: Standing) -> int:
        """Ticks that are behind the run, at most all of them."""

    def over(self, standing: Standing) -> bool:
        """Whether no update is to follow."""


@dataclass(frozen=True, slots=True)
class CountedCourse:
    """So many epochs of so many updates."""

    epochs: int
    updates: int

    @property
    def ticks(self) -> int:
        """One an update."""
        return self.epochs * self.updates

    def tick(self, standing: Standing) -> int:
        """The updates done."""
        return standing.steps_done

    def over(self, standing: Standing) -> bool:
        """All epochs are done."""
        return standing.epochs_done >= self.epochs


@dataclass(frozen=True, slots=True)
class TimedCourse:
    """As many updates as fit into `budget` seconds, less what comes after the last of them."""

    budget: float
    ticks: int = TICKS

    def tick(self, standing: Standing) -> int:
        """The share of the time that is over."""
        usable = self.budget - standing.ending
        return self.ticks if standing.elapsed >= usable else int(self.ticks * standing.elapsed / usable)

    def over(self, standing: Standing) -> bool:
        """Nothing is left for updates; at least one is made in any case."""
        return standing.steps_done > 0 and self.tick(standing) >= self.ticks


def size_at(tick: int, ticks: int, sizes: Sequence[int]) -> int:
    """The one of `sizes` whose turn it is; all have equal shares of the ticks."""
    return sizes[min(tick * len(sizes) // ticks, len(sizes) - 1)]


def seconds_to_end(validation: float, size: int, full_size: int, starting: float) -> float:
    """What comes after the last update, from the `validation` seconds at `size`: validation at full size, the same
    once more by the evaluation of the best epoch, and the report.

    Importing and building kept a core busy for `starting` seconds: where that is slow, scoring and drawing will be.
    """
    return 2 * validation * (full_size / size) ** 2 + _REPORT * starting
