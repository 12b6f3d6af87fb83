"""The training loop: epochs of batches, validated, saved, and stopped anywhere."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from hemafast.data.loader import Batch
from hemafast.engine.checkpoint import save_best, save_last
from hemafast.engine.course import seconds_to_end
from hemafast.engine.journal import Journal
from hemafast.engine.nonfinite import save_bad_batch
from hemafast.engine.run import Progress, Run, card_of, state_of
from hemafast.engine.step import Totals, seed_batch, update_plan
from hemafast.engine.stop import StopFlag, exit_code
from hemafast.engine.validate import Outcome, validate
from hemafast.errors import HemafastError, StoppedError
from hemafast.metrics import accuracy, macro_f1
from hemafast.run_folder import BEST, LAST

logger = logging.getLogger("hemafast")

_SAVE = 1  # what processes vote for; higher numbers are signals
_LATE = 9  # updates whose pace tells that of the next ones


class Loop:
    """A run on its way: what is trained, where it is written, and who may stop it."""

    def __init__(self, run: Run, folder: Path, journal: Journal, flag: StopFlag, *, began: float) -> None:
        self._run, self._folder, self._journal, self._flag = run, folder, journal, flag
        self._saved = self._timed = time.monotonic()
        self._began = began
        # Seconds of work, not of waiting: a cold disk is slow but once. This thread may have worked before, elsewhere.
        self._starting = min(time.thread_time(), self._timed - began)
        self._stepped = False
        self._paces: list[float] = []  # seconds an image, by update, since images grew
        self._rates: dict[int, float] = {}  # of the epoch under way, by update

    def train(self) -> None:
        """From where the run stands to its last epoch."""
        run, progress = self._run, self._run.progress
        if progress.steps_done == 0:
            self._save(must=True)  # so that a run stopped at its first step can be resumed too
        while not run.over:
            epoch = progress.epochs_done + 1
            rows = {"train": self._train_epoch(epoch)}
            outcome, rows["val"] = self._validate()
            _refuse_not_finite(outcome.loss, epoch)  # the last update may have ruined the weights
            progress.epochs_done, progress.steps_validated = epoch, progress.steps_done
            if rows["val"]["f1_macro"] > progress.best_f1 and self._save_best(epoch):
                progress.best_f1, progress.best_epoch = rows["val"]["f1_macro"], epoch
            self._journal.end_epoch(
                epoch, rows, confusion=outcome.pooled, classes=run.classes, lrs=self._rates_of(epoch)
            )
            logger.info(_epoch_line(epoch, run.config.epochs if run.config.time_budget is None else None, rows))
            run.totals = Totals(len(run.classes), run.machine.device)
            progress.seconds = progress.waited = 0.0
            self._save()
        logger.info("best epoch %d: macro-F1 %.4f on validation", progress.best_epoch, progress.best_f1)

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """The rest of an epoch, up to its last batch."""
        run, progress, journal = self._run, self._run.progress, self._journal
        run.model.train()
        sizes = run.train_batches.sizes
        plan = update_plan(sizes, run.config.accumulate, run.world.process.world_size)
        position = run.train_batches.position
        first = position.batch if position.epoch < epoch else len(sizes)  # trained, but not validated before a stop
        journal.begin_epoch(epoch, run.train_batches.images, done=sum(whole for _, whole in sizes[:first]))
        watch = _Watch(progress)
        batches = self._batches([completes for _, completes in plan]) if first < len(sizes) else iter(())
        self._rates = {}
        images = 0  # of the update under way
        for number, batch in enumerate(batches, start=first):
            watch.arrived()
            share, completes = plan[number]
            seed_batch(run.config.seed, run.world.process.rank, epoch, number)
            rate = self._rates[progress.steps_done] = run.schedule(min(run.tick, run.course.ticks - 1))
            run.train_step(batch, rate, run.totals, step=progress.steps_done, share=share, update=completes)
            self._announce_first_step()
            self._show(sizes[number][1])
            images += sizes[number][1]
            if completes:
                progress.steps_done += 1
                self._heed(run.train_step.bad.glance())
                self._maybe_stop(watch)
                self._look_at_clock(images)
                images = 0
                if run.course.over(progress):
                    break
            watch.asked()
        watch.pause()
        self._heed(run.train_step.bad.read())
        return self._train_row()

    def _batches(self, completes: Sequence[bool]) -> Iterator[Batch]:
        """The rest of the epoch; where images grow, the next update begins with larger ones.

        `completes` says of each batch of an epoch whether it completes an update.
        """
        run = self._run
        while True:
            self._grow()
            first = run.train_batches.position.batch
            for last, batch in zip(completes[first:], run.train_batches.epoch(), strict=True):
                yield batch
                if last and run.image_size > run.train_batches.image_size:
                    break
            else:
                return
            if run.train_batches.position.batch == 0:
                return

    def _grow(self) -> None:
        """Go on with images of the size whose turn it is."""
        run = self._run
        if run.image_size > run.train_batches.image_size:
            run.train_batches = run.train_batches.resized(run.image_size)
            run.val_batches = run.val_batches.resized(run.image_size)
            self._paces = []
            logger.info("images have %d px from update %d on", run.image_size, run.progress.steps_done + 1)

    def _look_at_clock(self, images: int = 0) -> None:
        """Count the seconds of the run; they were those of an update if that had `images`."""
        progress, now = self._run.progress, time.monotonic()
        passed, self._timed = now - self._timed, now
        progress.elapsed += passed
        if self._run.config.time_budget is None:
            return
        if images and not progress.epochs_done:
            self._paces.append(passed / images)
            self._guess_ending()
        progress.elapsed = self._run.world.highest(progress.elapsed)
        progress.ending = self._run.world.highest(progress.ending)

    def _guess_ending(self) -> None:
        """Before a validation has been timed, guess it from the pace of training."""
        late = self._paces[1:][-_LATE:]  # the first update fills the loader and compiles, and says nothing
        if late:
            # A forward pass is a third of a step; a guess may be too long rather than too short.
            self._run.progress.ending = self._ending(median(late) * self._run.val_batches.images / 2)

    def _ending(self, validation: float) -> float:
        """Seconds from the last update to the end, from those of a validation as images are now."""
        sizes = self._run.val_batches.image_size, self._run.config.image_size
        return seconds_to_end(validation, *sizes, self._starting)

    def _announce_first_step(self) -> None:
        if not self._stepped:
            self._stepped = True
            logger.info("first step %.1f s after the start", time.monotonic() - self._began)

    def _maybe_stop(self, watch: _Watch) -> None:
        """Save if it is time to; save and stop if a signal came. All processes do so behind the same update."""
        every, world = self._run.config.save_every, self._run.world
        due = world.first and every is not None and time.monotonic() - self._saved > 60 * every
        if due:
            self._saved = time.monotonic()  # one vote is enough: several processes hear of it an update later
        decided = world.vote(self._flag.number or int(due))
        if not decided:
            return
        watch.pause()
        if decided == _SAVE:
            self._save()
            return
        self._stop(decided)

    def _stop(self, number: int) -> None:
        progress = self._run.progress
        self._save(must=True)
        self._run.world.barrier()  # a process that ends makes torchrun end the others: not before the first has saved
        raise StoppedError(
            f"Stopped by {signal.Signals(number).name} after {progress.steps_done} updates, in epoch "
            f"{progress.epochs_done + 1} of {self._run.config.epochs}; all of it is saved.",
            f"Go on with `hemafast train --resume {self._folder}`.",
            exit_code=exit_code(number),
        )

    def _heed(self, bad: tuple[int, int] | None) -> None:
        """Keep the batches of an update that was not finite, and stop unless the run may leave it out."""
        run, progress = self._run, self._run.progress
        if bad is None or bad[0] <= progress.bad_updates:
            return
        progress.bad_updates, step = bad
        epoch, update = divmod(step, run.updates)
        numbers = range(
            update * run.config.accumulate, min((update + 1) * run.config.accumulate, len(run.train_batches))
        )
        for number in numbers:
            file = save_bad_batch(
                self._folder,
                run.train_batches.again(epoch, number),
                run.dataset,
                epoch=epoch + 1,
                number=number,
                rank=run.world.process.rank,
            )
        problem = f"The loss or its gradients were not finite in update {step + 1} (epoch {epoch + 1})"
        if run.config.on_nonfinite == "stop":
            raise HemafastError(
                f"{problem}; nothing was updated, its images are in {file.parent}, the last checkpoint is intact.",
                "Lower the learning rate with --lr, set --clip-grad, or let --on-nonfinite skip such updates.",
            )
        logger.warning("%s; it was left out (%d so far), its images are in %s", problem, bad[0], file.parent)
        if progress.bad_updates > run.config.nonfinite_budget:
            raise HemafastError(
                f"{progress.bad_updates} updates were not finite, and --nonfinite-budget is "
                f"{run.config.nonfinite_budget}; their images are in {file.parent}.",
                "Lower the learning rate with --lr, or set --clip-grad.",
            )

    def _show(self, images: int) -> None:
        """Advance the panel, with fresh scores where there are any."""
        glance = self._run.totals.glance() if self._journal.shows else None
        if glance is None:
            self._journal.advance(images)
            return
        progress = self._run.progress
        self._journal.advance(
            images,
            loss=glance[0],
            f1_macro=macro_f1(glance[1]),
            data_wait_share=progress.waited / progress.seconds if progress.seconds else None,
        )

    def _train_row(self) -> dict[str, float]:
        run, progress = self._run, self._run.progress
        run.totals.load(run.totals.summed(run.world))
        loss, confusion = run.totals.read()
        if not run.world.first:
            run.totals = Totals(len(run.classes), run.machine.device)  # the sums are with the first process now
        return {
            "loss": loss,
            "accuracy": accuracy(confusion),
            "f1_macro": macro_f1(confusion),
            "lr": run.schedule(max(run.tick - 1, 0)),
            "grad_norm": run.totals.mean_norm(),
            "seconds": progress.seconds,
            "images_per_second": int(confusion.sum()) / progress.seconds,
            "data_wait_share": progress.waited / progress.seconds,
            "bad_updates": progress.bad_updates,
        }

    def _validate(self) -> tuple[Outcome, dict[str, float]]:
        run = self._run
        self._journal.phase("validating")
        started = time.perf_counter()
        outcome = validate(
            run.scored_model,
            run.eval_step,
            run.val_batches,
            run.val_samples,
            Totals(len(run.classes), run.machine.device),
            world=run.world,
            on_batch=self._between_validation_batches,
        )
        seconds = time.perf_counter() - started
        run.progress.ending = self._ending(seconds)
        return outcome, _validation_row(outcome, seconds)

    def _between_validation_batches(self, images: int) -> None:
        # Alone, a run stops within validation too, and validates anew when it goes on. Several would have to agree.
        if self._run.world.alone and self._flag.number:
            self._stop(self._flag.number)

    def _save(self, *, must: bool = False) -> None:
        """Write a checkpoint; where the disk refuses it, say so and go on, unless it `must` be."""
        self._heed(self._run.train_step.bad.read())
        self._look_at_clock()
        state = state_of(self._run)
        self._saved = time.monotonic()
        if not self._run.world.first:
            return
        try:
            save_last(self._folder / LAST, state, keep=self._run.config.keep)
        except OSError as error:
            if must:
                raise HemafastError(
                    f"The checkpoint cannot be written ({error}); the one before it is intact.",
                    f"Make room, then `hemafast train --resume {self._folder}`.",
                ) from error
            logger.warning("the checkpoint cannot be written (%s); training goes on, the one before is intact", error)

    def _save_best(self, epoch: int) -> bool:
        """Whether the model of `epoch` is kept as the best one."""
        run = self._run
        if not run.world.first:
            return True
        try:
            save_best(self._folder / BEST, run.scored_model, card_of(run))
        except OSError as error:
            logger.warning("the best model cannot be written (%s); the one before is kept", error)
            return False
        return True

    def _rates_of(self, epoch: int) -> dict[int, float]:
        """Learning rates by update; under a time budget there are only those that have been used."""
        if self._run.config.time_budget is not None:
            return self._rates
        updates = self._run.updates
        return {step: self._run.schedule(step) for step in range((epoch - 1) * updates, epoch * updates)}


class _Watch:
    """Adds to `progress` what an epoch takes, and how much of it is waiting for data."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._since = self._asked = time.perf_counter()

    def arrived(self) -> None:
        """A batch is there."""
        self._progress.waited += time.perf_counter() - self._asked

    def asked(self) -> None:
        """The next batch is wanted."""
        self.pause()
        self._asked = self._since

    def pause(self) -> None:
        """Up to now it was training."""
        now = time.perf_counter()
        self._progress.seconds += now - self._since
        self._since = now


def _refuse_not_finite(loss: float, epoch: int) -> None:
    """Stop before broken weights replace good ones on the disk."""
    if not np.isfinite(loss):
        raise HemafastError(
            f"The validation loss is {loss} in epoch {epoch}; the checkpoint before it is intact.",
            "Lower the learning rate with --lr.",
        )


def _validation_row(outcome: Outcome, seconds: float) -> dict[str, float]:
    domains = {f"f1_macro_{name}": macro_f1(confusion) for name, confusion in outcome.domains.items()}
    return {
        "loss": outcome.loss,
        "accuracy": accuracy(outcome.pooled),
        "f1_macro": macro_f1(outcome.pooled),
        **domains,
        "seconds": seconds,
        "images_per_second": int(outcome.pooled.sum()) / seconds,
    }


def _epoch_line(epoch: int, epochs: int | None, rows: dict[str, dict[str, float]]) -> str:
    train, val = rows["train"], rows["val"]
    return (
        f"epoch {epoch}{f'/{epochs}' if epochs else ''}: train loss {train['loss']:.3f}, val loss {val['loss']:.3f}, "
        f"val macro-F1 {val['f1_macro']:.4f}, accuracy {val['accuracy']:.4f}, "
        f"{train['images_per_second']:,.1f} images/s, {train['seconds'] + val['seconds']:.1f} s"
    )
