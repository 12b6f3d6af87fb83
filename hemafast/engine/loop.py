"""The training loop: epochs of batches, validated and saved, stopped anywhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from hemafast.data.batch import Batch
from hemafast.engine.hooks import Clock, NonfiniteCheck, Saver, Stops
from hemafast.engine.journal import Journal
from hemafast.engine.run import Run
from hemafast.engine.starting import Starting
from hemafast.engine.step import seed_batch, update_plan
from hemafast.engine.stop import StopFlag
from hemafast.engine.task import Scored
from hemafast.errors import HemafastError

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
        row, lrs = _train_row(run), _rates_of(run, epoch, rates)
        end_epoch(run, row, lrs, journal=journal, stops=stops, clock=clock, saver=saver)
    logger.info(run.task.told_at_the_end(run))


def end_epoch(
    run: Run,
    row: dict[str, float],
    lrs: Mapping[int, float],
    *,
    journal: Journal,
    stops: Stops,
    clock: Clock,
    saver: Saver,
) -> None:
    """Score what an epoch has learned, keep it if it is better, write it down and save.

    `row` has the measurements of its training, and `lrs` the learning rates by update.
    """
    state, epoch, rows = run.state, run.state.epochs_done + 1, {"train": row}
    scored, rows["val"] = _score(run, journal, stops, clock)
    _refuse_not_finite(scored.broken, epoch)  # the last update may have ruined the weights
    state.epochs_done, state.steps_validated = epoch, state.steps_done
    if run.task.keeps(scored.score, state.best_f1):
        saver.hold_best()
        state.best_f1, state.best_epoch = scored.score, epoch
    journal.end_epoch(epoch, rows, confusion=scored.confusion, classes=run.dataset.info.classes, lrs=lrs)
    logger.info(_epoch_line(run, epoch, rows))
    run.begin_epoch()
    saver.save(must=run.over)


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


def _score(run: Run, journal: Journal, stops: Stops, clock: Clock) -> tuple[Scored, dict[str, float]]:
    journal.begin("validating", run.state.epochs_done + 1, run.task.images(run))
    started = time.perf_counter()

    def on_batch(images: int) -> None:
        stops.in_validation()
        journal.advance(images)

    scored = run.task.score(run, on_batch)
    seconds = time.perf_counter() - started
    clock.validated(seconds)
    return scored, {**scored.row, **_paced(run, "evaluation", scored.images, seconds)}


def _train_row(run: Run) -> dict[str, float]:
    state, totals = run.state, run.totals
    totals.load(totals.summed(run.world))
    measured, images = totals.measured()
    row = {
        **measured,
        "lr": run.schedule(max(run.tick - 1, 0)),
        "grad_norm": totals.mean_norm(),
        **_paced(run, "training", images, state.seconds),
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


def _refuse_not_finite(broken: str, epoch: int) -> None:
    """Stop before broken weights replace good ones on the disk."""
    if broken:
        raise HemafastError(
            f"{broken} in epoch {epoch}. The checkpoint before it is intact.",
            "Lower the learning rate with --lr.",
        )


def _epoch_line(run: Run, epoch: int, rows: dict[str, dict[str, float]]) -> str:
    train, val = rows["train"], rows["val"]
    of = f"/{run.duration.epochs}" if run.duration.epochs else ""
    return (
        f"epoch {epoch}{of}: train loss {train['loss']:.3f}, {run.task.told(val)}, "
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
