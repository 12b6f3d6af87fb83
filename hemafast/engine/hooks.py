"""What the loop does besides learning: measure time, save, stop, and look for batches that are not finite."""

from __future__ import annotations

import json
import logging
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from hemafast.command import resuming
from hemafast.data.batch import Batch
from hemafast.engine.checkpoint import save_last
from hemafast.engine.duration import TimeBudget, seconds_to_end, what_fits
from hemafast.engine.journal import Journal
from hemafast.engine.load import Load
from hemafast.engine.run import Run
from hemafast.engine.starting import Starting
from hemafast.engine.stop import StopFlag, exit_code
from hemafast.errors import HemafastError, StoppedError
from hemafast.files import make_inside, write_bytes, write_table, write_tensors
from hemafast.preparation.split import TRAIN
from hemafast.run_folder import LAST, NONFINITE
from hemafast.words import counted

logger = logging.getLogger("hemafast")

_SAVE = 1  # a vote of the processes; higher ones are signals, by their number above this
_CROWDED = 0.3  # of the wanted time; threads of one run wait for each other too, though less than this
_SURE = 4  # updates after which the pace is known well enough to say what fits
_RECENT = 9  # number of updates whose pace predicts the next ones


class Clock:
    """Counts the seconds of an epoch (training, waiting for data) and of the run, and predicts its end."""

    def __init__(self, run: Run, starting: Starting) -> None:
        self._run, self._start = run, starting
        self._looked = time.monotonic()
        # CPU seconds, because a cold disk is slow only once. This thread may also have worked before the run.
        self._starting = min(time.thread_time(), self._looked - starting.began)
        self._paces: list[float] = []  # seconds per image, by update, since images grew
        self._since = time.perf_counter()
        self._stepped = self._told = self._weighed = False
        batches = run.train_batches
        self._seen = sum(whole for _, whole in batches.sizes[: batches.position.batch])  # images of this epoch
        self._load = Load.now()

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches. The time until each one arrives counts as waiting, all time counts as training."""
        state = self._run.state
        self._since = asked = time.perf_counter()
        for batch in batches:
            if not self._stepped:
                self._start.done("first batch")
            state.waited += time.perf_counter() - asked
            yield batch
            self.pause()
            asked = self._since
        self.pause()

    def pause(self) -> None:
        """Count the training time up to now."""
        now = time.perf_counter()
        self._run.state.seconds += now - self._since
        self._since = now

    def stepped(self) -> None:
        """Log the time of the first step."""
        if not self._stepped:
            self._stepped = True
            self._start.done("first step")
            self._start.close()
            logger.info("first step %.1f s after the start: %s", self._start.seconds, self._start.told())

    def trained(self) -> None:
        """Say once if this process waited for a core for much of the last epoch."""
        load, before = Load.now(), self._load
        self._load = load
        if not self._told and (share := load.others_since(before)) > _CROWDED:
            self._told = True
            logger.info("waited for a core for %.0f %% of the processor time: other programs or a quota", 100 * share)

    def grown(self) -> None:
        """Forget the pace, because images are larger from now on."""
        self._paces = []

    def look(self, images: int = 0) -> None:
        """Count the seconds since the last call. They belong to an update with this number of images, or to none."""
        run, state, now = self._run, self._run.state, time.monotonic()
        passed, self._looked = now - self._looked, now
        state.elapsed += passed
        if not isinstance(run.duration, TimeBudget):
            return
        if images and not state.epochs_done:
            self._paces.append(passed / images)
            self._seen += images
            self._guess_ending()
        state.elapsed, state.ending = run.world.highest(state.elapsed, state.ending)
        self._weigh(run.duration)

    def _weigh(self, budget: TimeBudget) -> None:
        """Say once, as soon as the pace is known, if the time is too short for an epoch."""
        state = self._run.state
        if self._weighed or not self._paces or (len(self._paces) < _SURE and not budget.over(state)):
            return
        self._weighed = True
        pace = median(self._paces[1:] or self._paces)
        said = what_fits(budget, state, pace=pace, seen=self._seen, images=self._run.train_batches.images)
        if said and self._run.world.first:
            logger.warning(said)

    def validated(self, seconds: float) -> None:
        """Predict the end of the run from the seconds of a validation."""
        self._run.state.ending = self._ending(seconds)

    def _ending(self, validation: float) -> float:
        sizes = self._run.val_batches.image_size, self._run.config.image_size
        return seconds_to_end(validation, *sizes, self._starting)

    def _guess_ending(self) -> None:
        """Before the first validation, guess its seconds from the pace of training."""
        recent = self._paces[1:][-_RECENT:]  # the first update also fills the loader and compiles
        if recent:
            # A forward pass is a third of a step. Half a step, because the guess should rather be too long.
            self.validated(median(recent) * self._run.val_batches.images / 2)


class NonfiniteCheck:
    """Saves the batches of an update that was not finite, and stops the run unless it may skip the update."""

    def __init__(self, run: Run, folder: Path) -> None:
        self._run, self._folder = run, folder

    def __call__(self, bad: tuple[int, int] | None) -> None:
        """Check the count of bad updates and the number of the last one; None if not known yet."""
        run, state = self._run, self._run.state
        if bad is None or bad[0] <= state.bad_updates:
            return
        state.bad_updates, step = bad
        folder = self._folder / NONFINITE
        make_inside(folder)
        epoch, update = divmod(step, run.updates)
        first = update * run.config.accumulate
        for number in range(first, min(first + run.config.accumulate, len(run.train_batches))):
            self._save_batch(folder, epoch, number)
        problem = f"The loss or its gradients were not finite in update {step + 1} (epoch {epoch + 1})"
        if run.config.on_nonfinite == "stop":
            raise HemafastError(
                f"{problem}. Nothing was updated, the last checkpoint is intact, and the images are in {folder}.",
                "Lower the learning rate with --lr, set --clip-grad, or skip such updates with --on-nonfinite skip.",
            )
        logger.warning("%s. It was skipped (%d so far), the images are in %s", problem, bad[0], folder)
        if state.bad_updates > run.config.nonfinite_budget:
            raise HemafastError(
                f"{counted(state.bad_updates, 'update was', 'updates were')} not finite, and --nonfinite-budget is "
                f"{run.config.nonfinite_budget}. The images are in {folder}.",
                "Lower the learning rate with --lr, or set --clip-grad.",
            )

    def _save_batch(self, folder: Path, epoch: int, number: int) -> None:
        """Write a batch as tensors, and its rows of the manifest as CSV beside them.

        `images` are uint8 (n, 3, height, width), augmented but not mixed. `epoch` and `number` count from 0.
        """
        run = self._run
        batch = run.train_batches.again(epoch, number)
        file = folder / f"epoch{epoch + 1:03d}-batch{number:05d}-rank{run.world.process.rank}.safetensors"
        tensors = {"images": batch.images.contiguous(), "labels": batch.labels, "rows": batch.rows}
        where = {"epoch": str(epoch + 1), "batch": str(number), "classes": json.dumps(run.dataset.info.classes)}
        write_tensors(file, tensors, where)
        rows = run.dataset.split(TRAIN).iloc[batch.rows.numpy()]
        write_table(file.with_suffix(".csv"), rows)


class Saver:
    """Writes the best model, the rows of the log, and the checkpoint of a run.

    The checkpoint is written last, and only if the others were: a resumed run repeats all that is behind it, so that it
    ends with the same model and rows, whatever the disk refused in between.
    """

    def __init__(self, run: Run, folder: Path, clock: Clock, check: NonfiniteCheck, journal: Journal) -> None:
        self._run, self._folder, self._clock, self._check, self._journal = run, folder, clock, check, journal
        self._best = b""
        self.saved = time.monotonic()

    def save(self, *, must: bool = False) -> None:
        """Write a checkpoint. If the disk refuses a file, raise HemafastError if it `must` be written, else warn."""
        run = self._run
        self._check(run.learner.train_step.bad.read())
        self._clock.look()
        state = run.state_dict()
        self.saved = time.monotonic()
        if not run.world.first:
            return
        try:
            self._write_best()
            self._journal.write()
            save_last(self._folder / LAST, state, keep=run.config.keep)
        except OSError as error:
            lost, remedy = self._lost(error)
            if must:
                raise HemafastError(lost, f"{remedy}, then {self._again()}.") from error
            logger.warning("%s Training continues. %s, and the next checkpoint will be kept", lost, remedy)

    def _lost(self, error: OSError) -> tuple[str, str]:
        """What to say of a checkpoint that was not written, and how to help."""
        if not self._folder.is_dir():
            return f"The run cannot be saved: {self._folder} was removed or moved.", "Move it back"
        intact = "The checkpoint before is intact." if self._resumable else "There is no checkpoint yet."
        return f"The run cannot be saved ({error}). {intact}", "Make room, such as by deleting old runs"

    @property
    def _resumable(self) -> bool:
        """Whether there is a checkpoint, or was one in a folder that is gone."""
        return (self._folder / LAST).exists() or not self._folder.is_dir()

    def _again(self) -> str:
        return f"run `{resuming(self._run.config, self._folder)}`" if self._resumable else "start it again"

    def hold_best(self) -> None:
        """Hold the present model as the best one until `save` can write it."""
        if self._run.world.first:
            self._best = self._run.task.kept(self._run)

    def _write_best(self) -> None:
        if self._best:
            write_bytes(self._folder / self._run.task.file, self._best)
            self._best = b""


class Stops:
    """Saves at regular times, and saves and stops after a signal."""

    def __init__(self, run: Run, folder: Path, flag: StopFlag, saver: Saver, clock: Clock) -> None:
        self._run, self._folder, self._flag, self._saver, self._clock = run, folder, flag, saver, clock

    def after_update(self) -> None:
        """Save or stop if it is time; all processes decide the same after the same update."""
        every, world = self._run.config.save_every, self._run.world
        due = world.first and every is not None and time.monotonic() - self._saver.saved > 60 * every
        if due:
            self._saver.saved = time.monotonic()  # vote once: the other processes get the result an update later
        number = self._flag.number
        decided = world.vote(_SAVE + number if number else _SAVE * due)
        if not decided:
            return
        self._clock.pause()
        if decided == _SAVE:
            self._saver.save()
        else:
            self._stop(decided - _SAVE)

    def in_validation(self) -> None:
        """Stop after a signal. Several processes would disagree here, so they finish the validation first."""
        if self._run.world.alone and self._flag.number:
            self._stop(self._flag.number)

    def between_views(self) -> None:
        """Stop after a signal to any of the processes; each waits for all."""
        number = int(self._run.world.highest(self._flag.number or 0)[0])
        if number:
            self._stop(number)

    def _stop(self, number: int) -> None:
        state = self._run.state
        self._saver.save(must=True)
        self._run.world.barrier()  # torchrun ends all processes once one ends, so the first has to save before that
        raise StoppedError(
            f"Stopped by {signal.Signals(number).name} after {counted(state.steps_done, 'update')}, in epoch "
            f"{state.epochs_done + 1} of {self._run.config.epochs}. Everything is saved.",
            f"Continue with `{resuming(self._run.config, self._folder)}`.",
            exit_code=exit_code(number),
        )
