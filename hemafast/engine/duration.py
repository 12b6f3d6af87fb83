"""How long a run is, in epochs or in seconds. The learning rate schedule and the image sizes follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemafast.config import TrainConfig

if TYPE_CHECKING:
    from hemafast.engine.state import RunState

TICKS = 10_000
"""Parts of a time budget."""

_REPORT = 0.9  # CPU seconds of evaluation and report, without their pass over the images, per CPU second of the start


@dataclass(frozen=True, slots=True)
class EpochCount:
    """A fixed number of epochs, each with the same number of updates; one tick per update."""

    epochs: int
    updates: int

    @property
    def ticks(self) -> int:
        """Updates of the whole run."""
        return self.epochs * self.updates

    def tick(self, state: RunState) -> int:
        """Updates done so far."""
        return state.steps_done

    def over(self, state: RunState) -> bool:
        """Whether all epochs are done."""
        return state.epochs_done >= self.epochs


@dataclass(frozen=True, slots=True)
class TimeBudget:
    """As many updates as fit into `budget` seconds, minus the time that validation and report need at the end."""

    budget: float
    ticks: int = TICKS
    epochs: None = None
    """Unknown before the end."""

    def tick(self, state: RunState) -> int:
        """Ticks done so far, in proportion to the time used; at most all of them."""
        usable = self.budget - state.ending
        return self.ticks if state.elapsed >= usable else int(self.ticks * state.elapsed / usable)

    def over(self, state: RunState) -> bool:
        """Whether no time is left for updates. At least one is made in any case."""
        return state.steps_done > 0 and self.tick(state) >= self.ticks


Duration = EpochCount | TimeBudget
"""From the first update to the last, divided into ticks."""


def duration_of(config: TrainConfig, updates: int) -> Duration:
    """The duration of a run with this number of updates per epoch."""
    return EpochCount(config.epochs, updates) if config.time_budget is None else TimeBudget(config.time_budget)


def size_at(tick: int, ticks: int, sizes: Sequence[int]) -> int:
    """The image size at `tick`; all `sizes` get equal shares of the ticks."""
    return sizes[min(tick * len(sizes) // ticks, len(sizes) - 1)]


def seconds_to_end(validation: float, size: int, full_size: int, starting: float) -> float:
    """Seconds from the last update to the end, estimated from the `validation` seconds at `size`.

    These are validation at full size, the same again to evaluate the best epoch, and the report. Imports and building
    took `starting` CPU seconds: where these are slow, scoring and drawing are slow too.
    """
    return 2 * validation * (full_size / size) ** 2 + _REPORT * starting
