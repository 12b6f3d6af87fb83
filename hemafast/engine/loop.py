"""The training loop: epochs of batches, validated and saved, stopped anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from hemafast.data.batch import Batch
from hemafast.engine.hooks import Clock, NonfiniteCheck, Saver, Stops
from hemafast.engine.journal import Journal
from hemafast.engine.run import Run
from hemafast.engine.starting import Starting
from hemafast.engine.step import seed_batch, update_plan
from hemafast.engine.stop import StopFlag
from hemafast.engine.validate import Outcome, validate
from hemafast.errors import HemafastError
from hemafast.metrics import accuracy, macro_f1

logger = logging.getLogger("hemafast")

COMPILE_SECONDS = "compile_seconds"
"""Of a phase, where its step was compiled."""

_LEAST = 1e-3  # seconds; a run resumed within an epoch may have compiled longer than it trained since


def train_run(run: Run, folder: Path, journal: Journal, flag: StopFlag, starting: Starting) -> None:
    """Train from the present state of the run to its end. `starting` takes the time of its start."""
    state, learner, config, process = run.state, run.learner, run.config, run.world.process
    clock, check_finite = Clock(run, starting), NonfiniteCheck(run, folder)
    saver = Saver(run, folder, clock, check_finite, journal)
    stops = Stops(run, folder, flag, saver, clock)
    sizes = run.train_batches.sizes
    plan = update_plan(sizes, config.accumulate, process.world_size)
    if state.steps_done == 0:
        saver.save(must=True)  # so that a run stopped at its first step can be resumed too
        starting.done("checkpoint")
    while not run.over:
        epoch, images, rates = state.epochs_done + 1, 0, {}
        first = _first_batch(run)
        journal.begin("training", epoch, run.train_batches.images, done=sum(whole for _, whole in sizes[:first]))
        learner.model.train()
        for number, batch in enumerate(clock.timed(_batches(run, plan, first, clock)), start=first):
            share, completes = plan[number]
            seed_batch(config.seed, process.rank, epoch, number)
            rates[state.steps_done] = lr = run.schedule(min(run.tick, run.duration.ticks - 1))
            learner.train_step(batch, lr, run.totals, step=state.steps_done, share=share, update=completes)
            clock.stepped()
            journal.advance(sizes[number][1], run.totals, state)
            images += sizes[number][1]
            if not completes:
                continue
            state.steps_done += 1
            check_finite(learner.train_step.bad.glance())
            stops.after_update()
            clock.look(images)
            images = 0
            if run.duration.over(state):
                break
        clock.pause()
        clock.trained()
        check_finite(learner.train_step.bad.read())
        rows = {"train": _train_row(run)}
        outcome, rows["val"] = _validate(run, journal, stops, clock)
        _refuse_not_finite(outcome.loss, epoch)  # the last update may have ruined the weights
        state.epochs_done, state.steps_validated = epoch, state.steps_done
        if rows["val"]["f1_macro"] > state.best_f1:
            saver.hold_best()
            state.best_f1, state.best_epoch = rows["val"]["f1_macro"], epoch
        lrs = _rates_of(run, epoch, rates)
        journal.end_epoch(epoch, rows, confusion=outcome.pooled, classes=run.dataset.info.classes, lrs=lrs)
        logger.info(_epoch_line(run, epoch, rows))
        run.begin_epoch()
        saver.save(must=run.over)
    logger.info("best epoch %d: macro-F1 %.4f on the validation set", state.best_epoch, state.best_f1)


def _first_batch(run: Run) -> int:
    """The next batch of this epoch; behind its last one if the run was stopped between training and validation."""
    position = run.train_batches.position
    return position.batch if position.epoch <= run.state.epochs_done else len(run.train_batches)


def _batches(run: Run, plan: list[tuple[float, bool]], first: int, clock: Clock) -> Iterator[Batch]:
    """The rest of the epoch. When images grow, the next update begins with larger ones."""
    while first < len(plan):
        if run.image_size > run.train_batches.image_size:
            run.resize(run.image_size)
            clock.grown()
            logger.info("images have %d px from update %d on", run.image_size, run.state.steps_done + 1)
        for number, batch in enumerate(run.train_batches.epoch(), start=first):
            first = number + 1
            yield batch
            if plan[number][1] and run.image_size > run.train_batches.image_size:
                break


def _validate(run: Run, journal: Journal, stops: Stops, clock: Clock) -> tuple[Outcome, dict[str, float]]:
    journal.begin("validating", run.state.epochs_done + 1, run.val_batches.images)
    started = time.perf_counter()

    def on_batch(images: int) -> None:
        stops.in_validation()
        journal.advance(images)

    outcome = validate(
        run.learner.scored_model,
        run.learner.eval_step,
        run.val_batches,
        run.plan.val,
        run.new_totals(),
        world=run.world,
        on_batch=on_batch,
    )
    seconds = time.perf_counter() - started
    clock.validated(seconds)
    return outcome, {
        "loss": outcome.loss,
        "accuracy": accuracy(outcome.pooled),
        "f1_macro": macro_f1(outcome.pooled),
        **{f"f1_macro_{name}": macro_f1(confusion) for name, confusion in outcome.domains.items()},
        **_paced(run, "evaluation", int(outcome.pooled.sum()), seconds),
    }


def _train_row(run: Run) -> dict[str, float]:
    state, totals = run.state, run.totals
    totals.load(totals.summed(run.world))
    loss, confusion = totals.read()
    row = {
        "loss": loss,
        "accuracy": accuracy(confusion),
        "f1_macro": macro_f1(confusion),
        "lr": run.schedule(max(run.tick - 1, 0)),
        "grad_norm": totals.mean_norm(),
        **_paced(run, "training", int(confusion.sum()), state.seconds),
        "data_wait_share": state.waited / state.seconds,
        "bad_updates": state.bad_updates,
    }
    if not run.world.first:
        run.totals = run.new_totals()  # the first process holds the sums now
    return row


def _rates_of(run: Run, epoch: int, used: dict[int, float]) -> dict[int, float]:
    """Learning rates by update: those of the whole epoch or, under a time budget, the used ones."""
    if run.duration.epochs is None:
        return used
    return {step: run.schedule(step) for step in range((epoch - 1) * run.updates, epoch * run.updates)}


def _refuse_not_finite(loss: float, epoch: int) -> None:
    """Stop before broken weights replace good ones on the disk."""
    if not np.isfinite(loss):
        raise HemafastError(
            f"The validation loss is {loss} in epoch {epoch}. The checkpoint before it is intact.",
            "Lower the learning rate with --lr.",
        )


def _epoch_line(run: Run, epoch: int, rows: dict[str, dict[str, float]]) -> str:
    train, val = rows["train"], rows["val"]
    of = f"/{run.duration.epochs}" if run.duration.epochs else ""
    return (
        f"epoch {epoch}{of}: train loss {train['loss']:.3f}, val loss {val['loss']:.3f}, "
        f"val macro-F1 {val['f1_macro']:.4f}, accuracy {val['accuracy']:.4f}, "
        f"{train['images_per_second']:,.1f} images/s, {train['seconds'] + val['seconds']:.1f} s{_compiling(rows)}"
    )


def _compiling(rows: dict[str, dict[str, float]]) -> str:
    seconds = sum(row.get(COMPILE_SECONDS, 0.0) for row in rows.values())
    return f", {seconds:.1f} s of them compiling" if seconds else ""


def _paced(run: Run, step: str, images: int, seconds: float) -> dict[str, float]:
    """Seconds of a phase and its images per second, which leave out the seconds of compiling its step."""
    compiling = run.learner.compiler.new_seconds(step)
    row = {"seconds": seconds, "images_per_second": images / max(seconds - compiling, _LEAST)}
    return row | {COMPILE_SECONDS: compiling} if compiling else row
