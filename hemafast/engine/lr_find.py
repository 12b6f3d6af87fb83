"""The learning rate range test: raise the rate step by step, and see where the loss falls and where it diverges.

Smith, "Cyclical Learning Rates for Training Neural Networks" (arXiv 1506.01186), section 3.3, with the rate growing
by a constant factor.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.config import TrainConfig
from hemafast.data.batch import Batch
from hemafast.engine.build import build_run
from hemafast.engine.distributed import World, joined
from hemafast.engine.plan import announce_weights, settle
from hemafast.engine.run import Run
from hemafast.engine.step import seed_batch, update_plan
from hemafast.errors import HemafastError
from hemafast.files import make_folder, write_whole, writing
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, save, subplots
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted

_MEMORY = 0.9  # decay of the moving average of the losses, because a single batch is noisy
_BROKEN = 3.0  # times the lowest loss: the loss has diverged
_EDGE = 5  # steps at the start of the curve whose slope is noise


@dataclass(frozen=True, slots=True)
class RateCurve:
    """The loss while the learning rate grew."""

    rates: npt.NDArray[np.float64]
    losses: npt.NDArray[np.float64]
    """Loss of each batch before its update."""

    @property
    def smoothed(self) -> npt.NDArray[np.float64]:
        """Moving average of the losses, with the bias of its start removed."""
        averages, average = [], 0.0
        for step, loss in enumerate(self.losses, start=1):
            average = _MEMORY * average + (1 - _MEMORY) * float(loss)
            averages.append(average / (1 - _MEMORY**step))
        return np.array(averages)

    @property
    def steepest(self) -> float:
        """The rate at which the loss falls fastest, a cautious choice."""
        slopes = np.gradient(self.smoothed, np.log(self.rates))
        inner = slice(_EDGE, int(self.smoothed.argmin()) + 1)
        return float(self.rates[inner][slopes[inner].argmin()]) if slopes[inner].size else float(self.rates[0])

    @property
    def suggestion(self) -> float:
        """A tenth of the rate with the lowest loss: a peak for the one-cycle schedule."""
        return float(self.rates[self.smoothed.argmin()] / 10)


def find_rate(
    config: TrainConfig,
    *,
    first: float = 1e-6,
    last: float = 1.0,
    steps: int = 100,
    progress: Progress = SILENT,
) -> RateCurve | None:
    """Train for `steps` updates at rates from `first` to `last`, or until the loss diverges. Keeps no weights.

    Every process of torchrun calls this; the losses are those of all. Returns the curve in the first process, None in
    the others. Raises HemafastError for a probe, if the range is not valid, or if the loss diverges within the first
    steps.
    """
    if not 0 < first < last or steps < 2 * _EDGE:
        raise HemafastError(
            f"{counted(steps, 'step')} from {first} to {last} are not a valid range.",
            f"Give a last rate above the first, and at least {2 * _EDGE} steps.",
        )
    if config.probe:
        raise HemafastError(f"probe = {config.probe} makes no steps: there is no rate to find.", "Leave it out.")
    with joined(config.device) as world:
        curve = _try_rates(replace(config, on_nonfinite="skip"), world, np.geomspace(first, last, steps), progress)
        return curve if world.first else None


def _try_rates(config: TrainConfig, world: World, rates: npt.NDArray[np.float64], progress: Progress) -> RateCurve:
    """The curve, the same in all processes."""
    run = build_run(settle(config, world), world)
    if world.first:
        announce_weights(run.plan, run.learner.started_from)
    run.learner.model.train()
    train_step, losses = run.learner.train_step, list[float]()
    with stage(progress, "raising the learning rate", len(rates), unit="steps"):
        for step, (batch, share) in zip(range(len(rates)), _endless(run), strict=False):
            totals = run.new_totals()
            train_step(batch, float(rates[step]), totals, step=step, share=share)
            if train_step.bad.read()[0]:
                break
            totals.load(totals.summed(world))
            losses.append(totals.read()[0])
            progress.advance()
            if losses[-1] > _BROKEN * min(losses):
                break
    if len(losses) < 2 * _EDGE:
        raise HemafastError(f"The loss diverged within {counted(len(losses), 'step')}.", "Start from a lower rate.")
    return RateCurve(rates[: len(losses)], np.array(losses))


def write_curve(curve: RateCurve, folder: Path) -> Path:
    """Write lr_find.csv and lr_find.png into `folder`. Returns the file of the picture."""
    table, picture, figure = folder / "lr_find.csv", folder / "lr_find.png", draw_curve(curve)
    make_folder(folder)
    with writing(folder):
        write_whole(table, lambda part: _write_table(part, curve))
        write_whole(picture, lambda part: save(figure, part))
    return picture


def _write_table(file: Path, curve: RateCurve) -> None:
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["lr", "loss", "smoothed_loss"])
        writer.writerows(zip(curve.rates, curve.losses, curve.smoothed, strict=True))


def draw_curve(curve: RateCurve) -> Any:
    """Loss over learning rate, with the suggestion marked."""
    figure, (axes,) = subplots(1, width=7, height=4.5, columns=1)
    axes.plot(curve.rates, curve.losses, color="0.8", linewidth=1, label="each batch")
    axes.plot(curve.rates, curve.smoothed, color=TRAIN_COLOUR, linewidth=2, label="smoothed")
    for rate, name, colour in (
        (curve.suggestion, "suggested peak", VAL_COLOUR),
        (curve.steepest, "steepest fall", DOMAIN_COLOURS[0]),
    ):
        axes.axvline(rate, color=colour, linestyle="--", label=f"{name}: {rate:.1e}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    # From the best batch to a little above the start; a diverging loss leaves the picture.
    low, high = curve.losses.min(), curve.smoothed[0]
    axes.set_ylim(max(0.0, low - 0.1 * (high - low)), high + 0.5 * (high - low) + 0.1)
    axes.legend()
    return figure


def _endless(run: Run) -> Iterator[tuple[Batch, float]]:
    """Batches, each with the weight of its mean loss in an update of all processes."""
    process = run.world.process
    plan = update_plan(run.train_batches.sizes, 1, process.world_size)
    for epoch in count():
        for number, batch in enumerate(run.train_batches.epoch(epoch)):
            seed_batch(run.config.seed, process.rank, epoch, number)
            yield batch, plan[number][0]
