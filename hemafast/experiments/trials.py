"""One trial of a search: a run on the split, or one on each fold; it ends early where others did better."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

from hemafast.config import TrainConfig
from hemafast.errors import StoppedError
from hemafast.experiments.runs import Failed, Scored, run_all
from hemafast.progress import Progress

if TYPE_CHECKING:
    from optuna import Trial

BY_FOLD = "by_fold"
"""Attribute of a trial: the macro-F1 of each fold that has ended."""


class PrunedError(StoppedError):
    """A trial is worse than others were at that epoch, or after so many folds."""


class OutOfTimeError(StoppedError):
    """The time budget is used up within a trial."""


class _Watch(Progress):
    """Listens to the runs of a trial, and ends it early where that is asked for.

    Args:
        listener: hears everything too.
        trial: is told the scores that it is judged by.
        ends: of the time budget, in seconds of the monotonic clock.
        by_epoch: whether it is judged by its epochs; otherwise by `judge` alone.
    """

    def __init__(self, listener: Progress, trial: Trial, ends: float, *, by_epoch: bool) -> None:
        self._listener, self._trial, self._ends, self._by_epoch = listener, trial, ends, by_epoch
        self.shows = listener.shows

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        self._listener.start(what, total, unit=unit, done=done, **facts)

    def advance(self, count: int = 1, **measured: float) -> None:
        self._listener.advance(count, **measured)

    def say(self, text: str) -> None:
        self._listener.say(text)

    def finish(self, **results: Any) -> None:
        self._listener.finish(**results)
        if "val" not in results.get("rows", {}):
            return
        if self._by_epoch:
            self._trial.report(results["rows"]["val"]["f1_macro"], results["epoch"])
        self._stop_in_time()
        if self._by_epoch:
            self._prune()

    def judge(self, scores: Sequence[float], folds: int) -> None:
        """Judge a trial by the mean over the folds so far. Raises PrunedError or OutOfTimeError to end it here."""
        self._trial.report(mean(scores), len(scores))
        if len(scores) < folds:
            self._stop_in_time()
            self._prune()

    def _stop_in_time(self) -> None:
        if time.monotonic() > self._ends:
            raise OutOfTimeError("The time budget is used up.", "Run the same command to continue.")

    def _prune(self) -> None:
        if self._trial.should_prune():
            raise PrunedError("Others were better at this point.", "The trial is not resumed.")


@dataclass(frozen=True, slots=True)
class Trained:
    """A trial that has come to its end: its run, or those of all folds."""

    runs: tuple[Scored, ...]

    @property
    def macro_f1(self) -> float:
        """The mean over the runs."""
        return mean(_score(run) for run in self.runs)

    def facts(self) -> dict[str, Any]:
        """What is told of it, ready for JSON; an interval only of a single run."""
        training = [run.metrics["training"] for run in self.runs]
        alone = len(self.runs) == 1
        return {
            "ci95": self.runs[0].metrics["pooled"]["ci95"]["macro_f1"] if alone else [None, None],
            "epochs": max(one["epochs"] for one in training),
            "seconds": sum(one["total_seconds"] for one in training),
            "run": str(self.runs[0].folder if alone else self.runs[0].folder.parent),
            "runs": [str(run.folder) for run in self.runs],
        }


def train_trial(
    trial: Trial, config: TrainConfig, folds: int | None, *, ends: float, progress: Progress
) -> Trained | Failed:
    """Train and score one trial, on the split or on one fold after the other.

    Args:
        trial: is told its scores, and after each fold those of all so far as BY_FOLD.
        config: settings of the trial; its output is a folder of its own.
        folds: with which the data was prepared; None for its split.
        ends: of the time budget, in seconds of the monotonic clock.
        progress: listens to the runs.

    Returns:
        The runs, or why one failed.

    Raises:
        PrunedError: others were better.
        OutOfTimeError: the time budget is used up; the same call continues.
        StoppedError: a signal stopped a run.
    """
    watch = _Watch(progress, trial, ends, by_epoch=folds is None)
    scored: list[Scored] = []
    for name, one in _configs(config, folds).items():
        ((_, outcome),) = run_all({name: one}, progress=watch)
        if isinstance(outcome, Failed):
            return outcome if folds is None else Failed(f"{name}: {outcome.reason}")
        scored.append(outcome)
        if folds is not None:
            scores = [_score(run) for run in scored]
            trial.set_user_attr(BY_FOLD, scores)
            watch.judge(scores, folds)
    return Trained(tuple(scored))


def _configs(config: TrainConfig, folds: int | None) -> dict[str, TrainConfig]:
    if folds is None:
        return {config.output.name: config}
    return {f"fold_{fold}": replace(config, fold=fold, output=config.output / f"fold_{fold}") for fold in range(folds)}


def _score(run: Scored) -> float:
    return float(run.metrics["pooled"]["macro_f1"])
