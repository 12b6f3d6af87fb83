"""How long a run is, in epochs or in seconds. The learning rate schedule and the image sizes follow it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hemafast.config import TrainConfig
from hemafast.errors import HemafastError

if TYPE_CHECKING:
    from hemafast.engine.state import RunState

TICKS = 10_000
"""Parts of a time budget."""

_ROOM = 4  # times the start, for a run in which there is time to train
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


def refuse_used_up(duration: Duration, state: RunState) -> None:
    """Raise HemafastError if the start of a new run has used its whole time budget."""
    if isinstance(duration, TimeBudget) and state.elapsed >= duration.budget:
        raise HemafastError(
            f"The time budget of {duration.budget:.0f} s was over before the first update: the start took "
            f"{state.elapsed:.0f} s.",
            f"Give a longer --time-budget, such as {_ROOM * state.elapsed:.0f}s.",
        )


def what_fits(duration: TimeBudget, state: RunState, *, pace: float, seen: int, images: int) -> str | None:
    """A sentence about a budget that is too short for the first epoch; None for one that is not.

    Args:
        duration: the budget.
        state: how far the run is, with its guess of the seconds that validation and report take.
        pace: seconds per image.
        seen: images trained so far.
        images: images of the epoch.
    """
    fits = seen + max(duration.budget - state.ending - state.elapsed, 0.0) / pace
    if fits >= images:
        return None
    whole = state.elapsed + (images - seen) * pace + state.ending
    return (
        f"the time budget of {duration.budget:.0f} s fits about {fits / images:.0%} of one epoch, and these images are "
        f"trained on; a whole epoch with validation and report takes about {whole:.0f} s (--time-budget)"
    )


def size_at(tick: int, ticks: int, sizes: Sequence[int]) -> int:
    """The image size at `tick`; all `sizes` get equal shares of the ticks."""
    return sizes[min(tick * len(sizes) // ticks, len(sizes) - 1)]


def seconds_to_end(validation: float, size: int, full_size: int, starting: float) -> float:
    """Seconds from the last update to the end, estimated from the `validation` seconds at `size`.

    These are validation at full size, the same again to evaluate the best epoch, and the report. Imports and building
    took `starting` CPU seconds: where these are slow, scoring and drawing are slow too.
    """
    return 2 * validation * (full_size / size) ** 2 + _REPORT * starting
