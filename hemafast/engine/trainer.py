"""The training loop."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
from rich.console import Console

from hemafast.config import TrainConfig, checked, to_json, to_plain
from hemafast.engine.checkpoint import BEST, LAST, load_last, save_best, save_last
from hemafast.engine.journal import Bar, Journal, logger
from hemafast.engine.run import CONFIG, DRAWN_WARNING, MACHINE, Run, card_of, read_config, set_up, state_of
from hemafast.engine.step import Totals
from hemafast.engine.validate import Outcome, validate
from hemafast.errors import HemafastError, StoppedError
from hemafast.metrics import accuracy, macro_f1


def train(config: TrainConfig, console: Console) -> Path:
    """Train from the start, in a new run folder under `config.output`. Returns the folder.

    Raises HemafastError for what cannot be done (before anything is written), StoppedError on Ctrl-C.
    """
    config = replace(config, data=config.data.absolute())  # a run is resumed and evaluated from anywhere
    run = set_up(config, state=None)
    folder = _new_folder(config)
    (folder / CONFIG).write_text(to_json(config), encoding="utf-8")
    (folder / MACHINE).write_text(json.dumps(run.machine.to_json(), indent=2) + "\n", encoding="utf-8")
    _loop(run, folder, console)
    return folder


def resume(folder: Path, console: Console, *, epochs: int | None = None) -> Path:
    """Go on with the run in `folder` from its last checkpoint, with its own settings; `epochs` may extend it.

    A run that is finished is left as it is. Raises HemafastError if `folder` is not a run or its data has changed.
    """
    config = read_config(folder)
    if epochs is not None:
        config = checked(TrainConfig, {**to_plain(config), "epochs": epochs})
    state = load_last(folder / LAST)
    if state["progress"]["epochs_done"] >= config.epochs:
        logger.info("%s is finished (%d epochs); give more --epochs to extend it", folder, config.epochs)
        return folder
    run = set_up(config, state)
    (folder / CONFIG).write_text(to_json(config), encoding="utf-8")
    _loop(run, folder, console)
    return folder


def _loop(run: Run, folder: Path, console: Console) -> None:
    config, progress = run.config, run.progress
    with Journal(folder, console, first_epoch=progress.epochs_done + 1) as journal:
        _announce(run, folder)
        save_last(folder / LAST, state_of(run))  # so that a run stopped in its first epoch can be resumed too
        try:
            for epoch in range(progress.epochs_done, config.epochs):
                with journal.bar(epoch + 1, config.epochs, run.train_batches.images) as bar:
                    measured = _train_epoch(run, epoch, bar)
                started = time.perf_counter()
                outcome = validate(
                    run.model, run.steps, run.val_batches, run.val_samples, Totals(len(run.classes), run.machine.device)
                )
                measured |= _validation_row(outcome, time.perf_counter() - started)
                _refuse_not_finite("validation", outcome.loss, epoch)  # the last step may have ruined the weights
                progress.epochs_done = epoch + 1
                if measured["val_macro_f1"] > progress.best_f1:
                    progress.best_f1, progress.best_epoch = measured["val_macro_f1"], epoch + 1
                    save_best(folder / BEST, run.model, card_of(run))
                journal.epoch({"epoch": epoch + 1, **measured})
                logger.info(_epoch_line(epoch + 1, config.epochs, measured))
                save_last(folder / LAST, state_of(run))
        except KeyboardInterrupt:
            raise StoppedError(
                f"Stopped in epoch {progress.epochs_done + 1}; epochs up to {progress.epochs_done} are saved.",
                f"Go on with `hemafast train --resume {folder}`.",
            ) from None
        logger.info("best epoch %d: macro-F1 %.4f on validation", progress.best_epoch, progress.best_f1)


def _train_epoch(run: Run, epoch: int, bar: Bar) -> dict[str, float]:
    run.model.train()
    totals = Totals(len(run.classes), run.machine.device)
    started = asked = time.perf_counter()
    waited, shown = 0.0, started
    lr = run.schedule(run.progress.steps_done)
    for batch in run.train_batches.epoch(epoch):
        waited += time.perf_counter() - asked
        lr = run.schedule(run.progress.steps_done)
        run.steps.train(batch, run.optimizer, lr, totals)
        run.progress.steps_done += 1
        if not bar.hidden:
            shown = _show(bar, totals, len(batch.labels), shown)
        asked = time.perf_counter()
    loss, confusion = totals.read()
    seconds = time.perf_counter() - started
    _refuse_not_finite("training", loss, epoch)
    return {
        "lr": lr,
        "train_loss": loss,
        "train_macro_f1": macro_f1(confusion),
        "train_accuracy": accuracy(confusion),
        "train_seconds": seconds,
        "train_images_per_second": totals.images / seconds,
        "data_wait_share": waited / seconds,
    }


def _refuse_not_finite(which: str, loss: float, epoch: int) -> None:
    """Stop before broken weights replace good ones on the disk."""
    if not np.isfinite(loss):
        raise HemafastError(
            f"The {which} loss is {loss} in epoch {epoch + 1}; the checkpoint before it is intact.",
            "Lower the learning rate with --lr.",
        )


def _show(bar: Bar, totals: Totals, images: int, shown: float) -> float:
    """Advance the bar, with fresh scores twice a second. Returns when scores were shown last."""
    now = time.perf_counter()
    glance = totals.glance() if now - shown > 0.5 else None
    scores = None if glance is None else f"loss {glance[0]:.3f} macro-F1 {macro_f1(glance[1]):.3f}"
    bar.advance(images, scores)
    return shown if glance is None else now


def _validation_row(outcome: Outcome, seconds: float) -> dict[str, float]:
    domains = {f"val_macro_f1_{name}": macro_f1(confusion) for name, confusion in outcome.domains.items()}
    return {
        "val_loss": outcome.loss,
        "val_macro_f1": macro_f1(outcome.pooled),
        "val_accuracy": accuracy(outcome.pooled),
        **domains,
        "val_seconds": seconds,
        "val_images_per_second": int(outcome.pooled.sum()) / seconds,
    }


def _epoch_line(epoch: int, epochs: int, row: dict[str, float]) -> str:
    return (
        f"epoch {epoch}/{epochs}: train loss {row['train_loss']:.3f}, val loss {row['val_loss']:.3f}, "
        f"val macro-F1 {row['val_macro_f1']:.4f}, accuracy {row['val_accuracy']:.4f}, "
        f"{row['train_images_per_second']:,.1f} images/s, {row['train_seconds'] + row['val_seconds']:.1f} s"
    )


def _new_folder(config: TrainConfig) -> Path:
    """A new folder named for the moment and the model."""
    stamp = datetime.now().astimezone().strftime("%Y%m%d_%H%M%S")
    name = f"{stamp}_{config.model}" + ("_onecycle" if config.onecycle else "")
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        folder = config.output / (name + suffix)
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise HemafastError(f"{folder} cannot be made ({error.strerror}).", "Choose another --output.") from error
        return folder
    raise HemafastError(f"{config.output} holds a hundred runs of this second.", "Choose another --output.")


def _announce(run: Run, folder: Path) -> None:
    info, config = run.dataset.info, run.config
    logger.info("run folder %s", folder)
    for choice in run.machine.choices:
        logger.info("%s: %s (%s)", choice.name, choice.value, choice.reason)
    logger.info(
        "%d training and %d validation images of %s, %d classes, fingerprint %s",
        run.train_batches.images,
        run.val_batches.images,
        ", ".join(info.domains),
        len(run.classes),
        info.fingerprint[:12],
    )
    logger.info("%s at %d px, started from %s", config.model, config.image_size, run.started_from)
    warnings = [DRAWN_WARNING] if info.drawn else []
    if run.started_from.startswith("RANDOM"):
        warnings.append(f"TRAINING STARTS FROM {run.started_from}: expect a far lower score in the same time")
    for warning in warnings:
        logger.warning(warning)
