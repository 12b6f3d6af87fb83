"""What the loop does besides learning: it keeps time, saves, stops, and looks for batches that are not finite."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from hemafast.data.loader import Batch
from hemafast.engine.checkpoint import save_best, save_last
from hemafast.engine.duration import seconds_to_end
from hemafast.engine.nonfinite import save_bad_batch
from hemafast.engine.run import Run
from hemafast.engine.stop import StopFlag, exit_code
from hemafast.errors import HemafastError, StoppedError
from hemafast.run_folder import BEST, LAST

logger = logging.getLogger("hemafast")

_SAVE = 1  # what processes vote for; higher numbers are signals
_RECENT = 9  # updates whose pace predicts that of the next ones


class Clock:
    """Counts the seconds of a run: of training and of waiting for data in an epoch, of the whole, and to its end."""

    def __init__(self, run: Run, began: float) -> None:
        self._run, self._began = run, began
        self._looked = time.monotonic()
        # Seconds of work, not of waiting: a cold disk is slow only once. This thread may have worked before, elsewhere.
        self._starting = min(time.thread_time(), self._looked - began)
        self._paces: list[float] = []  # seconds per image, by update, since images grew
        self._since = time.perf_counter()
        self._stepped = False

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the time until each arrives is waiting, and all of it is training."""
        state = self._run.state
        self._since = asked = time.perf_counter()
        for batch in batches:
            state.waited += time.perf_counter() - asked
            yield batch
            self.pause()
            asked = self._since
        self.pause()

    def pause(self) -> None:
        """Count what has been trained up to now."""
        now = time.perf_counter()
        self._run.state.seconds += now - self._since
        self._since = now

    def stepped(self) -> None:
        """Log the time of the first step."""
        if not self._stepped:
            self._stepped = True
            logger.info("first step %.1f s after the start", time.monotonic() - self._began)

    def grown(self) -> None:
        """Forget the pace of smaller images."""
        self._paces = []

    def look(self, images: int = 0) -> None:
        """Count the seconds of the run; with `images`, they were those of an update of so many."""
        run, state, now = self._run, self._run.state, time.monotonic()
        passed, self._looked = now - self._looked, now
        state.elapsed += passed
        if run.config.time_budget is None:
            return
        if images and not state.epochs_done:
            self._paces.append(passed / images)
            self._guess_ending()
        state.elapsed = run.world.highest(state.elapsed)
        state.ending = run.world.highest(state.ending)

    def validated(self, seconds: float) -> None:
        """Expect the end of the run from the time of a validation."""
        self._run.state.ending = self._ending(seconds)

    def _ending(self, validation: float) -> float:
        sizes = self._run.val_batches.image_size, self._run.config.image_size
        return seconds_to_end(validation, *sizes, self._starting)

    def _guess_ending(self) -> None:
        """Before the first validation, guess its time from the pace of training."""
        recent = self._paces[1:][-_RECENT:]  # the first update fills the loader and compiles, and says nothing
        if recent:
            # A forward pass is a third of a step; a guess may be too long rather than too short.
            self.validated(median(recent) * self._run.val_batches.images / 2)


class NonfiniteCheck:
    """Keeps the batches of an update that was not finite, and stops the run unless it may skip the update."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder = run, folder

    def __call__(self, bad: tuple[int, int] | None) -> None:
        """Look at the number of bad updates and the last of them; None: not known yet."""
        run, state = self._run, self._run.state
        if bad is None or bad[0] <= state.bad_updates:
            return
        state.bad_updates, step = bad
        folder = self._save_batches(step)
        problem = f"The loss or its gradients were not finite in update {step + 1} (epoch {step // run.updates + 1})"
        if run.config.on_nonfinite == "stop":
            raise HemafastError(
                f"{problem}; nothing was updated, its images are in {folder}, the last checkpoint is intact.",
                "Lower the learning rate with --lr, set --clip-grad, or let --on-nonfinite skip such updates.",
            )
        logger.warning("%s; it was skipped (%d so far), its images are in %s", problem, bad[0], folder)
        if state.bad_updates > run.config.nonfinite_budget:
            raise HemafastError(
                f"{state.bad_updates} updates were not finite, and --nonfinite-budget is "
                f"{run.config.nonfinite_budget}; their images are in {folder}.",
                "Lower the learning rate with --lr, or set --clip-grad.",
            )

    def _save_batches(self, step: int) -> Path:
        run = self._run
        accumulate, (epoch, update) = run.config.accumulate, divmod(step, run.updates)
        for number in range(update * accumulate, min((update + 1) * accumulate, len(run.train_batches))):
            batch = run.train_batches.again(epoch, number)
            rank = run.world.process.rank
            file = save_bad_batch(self._folder, batch, run.dataset, epoch=epoch + 1, number=number, rank=rank)
        return file.parent


class Saver:
    """Writes the checkpoint and the best model of a run."""

    def __init__(self, run: Run, folder: Path, clock: Clock, check: NonfiniteCheck) -> None:
        self._run, self._folder, self._clock, self._check = run, folder, clock, check
        self.saved = time.monotonic()

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint; if the disk refuses it, warn and go on, unless it `must` be written."""
        run = self._run
        self._check(run.learner.train_step.bad.read())
        self._clock.look()
        state = run.state_dict()
        self.saved = time.monotonic()
        if not run.world.first:
            return
        try:
            save_last(self._folder / LAST, state, keep=run.config.keep)
        except OSError as error:
            if must:
                raise HemafastError(
                    f"The checkpoint cannot be written ({error}); the one before it is intact.",
                    f"Free some space, then run `hemafast train --resume {self._folder}`.",
                ) from error
            logger.warning("the checkpoint cannot be written (%s); training continues, the last one is intact", error)

    def save_best(self) -> bool:
        """Keep the present model as the best one; False if the disk refuses it."""
        run = self._run
        if not run.world.first:
            return True
        try:
            save_best(self._folder / BEST, run.scored_model, run.model_card())
        except OSError as error:
            logger.warning("the best model cannot be written (%s); the last one is kept", error)
            return False
        return True


class Stops:
    """Saves when it is time to, and saves and stops after a signal."""

    def __init__(self, run: Run, folder: Path, flag: StopFlag, saver: Saver, clock: Clock) -> None:
        self._run, self._folder, self._flag, self._saver, self._clock = run, folder, flag, saver, clock

    def after_update(self) -> None:
        """Save or stop; all processes do so after the same update."""
        every, world = self._run.config.save_every, self._run.world
        due = world.first and every is not None and time.monotonic() - self._saver.saved > 60 * every
        if due:
            self._saver.saved = time.monotonic()  # one vote is enough: other processes hear of it an update later
        decided = world.vote(self._flag.number or int(due))
        if not decided:
            return
        self._clock.pause()
        if decided == _SAVE:
            self._saver.save()
        else:
            self._stop(decided)

    def in_validation(self) -> None:
        """Stop. A single process stops within validation too, and validates anew on resume; several would disagree."""
        if self._run.world.alone and self._flag.number:
            self._stop(self._flag.number)

    def _stop(self, number: int) -> None:
        state = self._run.state
        self._saver.save(must=True)
        self._run.world.barrier()  # a process that ends makes torchrun end the others: not before the first has saved
        raise StoppedError(
            f"Stopped by {signal.Signals(number).name} after {state.steps_done} updates, in epoch "
            f"{state.epochs_done + 1} of {self._run.config.epochs}. Everything is saved.",
            f"Continue with `hemafast train --resume {self._folder}`.",
            exit_code=exit_code(number),
        )
