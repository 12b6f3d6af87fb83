"""The training loop."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from hemafast.config import TrainConfig, checked, to_json, to_plain
from hemafast.data.dataset import Dataset, Samples, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import Loader, eval_loader, train_loader
from hemafast.engine.checkpoint import BEST, LAST, ModelCard, load_last, save_best, save_last
from hemafast.engine.journal import Bar, Journal, logger
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.engine.schedule import Schedule, constant, one_cycle
from hemafast.engine.step import Steps, Totals, build_optimizer
from hemafast.engine.validate import Outcome, validate
from hemafast.errors import HemafastError, StoppedError
from hemafast.metrics import accuracy, macro_f1
from hemafast.model import Classifier, build_initial_model, build_model
from hemafast.objective import build_loss
from hemafast.prepare.split import TRAIN, VAL

CONFIG = "config.json"
MACHINE = "machine.json"

DRAWN_WARNING = "THE DATA IS DRAWN, NOT PHOTOGRAPHED: no score on it says anything about real blood"


@dataclass(slots=True)
class Progress:
    """Where a run stands; all of it is in the checkpoint."""

    epochs_done: int = 0
    steps_done: int = 0
    best_f1: float = -1.0
    best_epoch: int = 0


@dataclass(slots=True)
class Run:
    """Everything that the loop works on."""

    config: TrainConfig
    machine: Machine
    dataset: Dataset
    model: Classifier
    started_from: str
    optimizer: torch.optim.Optimizer
    steps: Steps
    schedule: Schedule
    train_batches: Loader
    val_batches: Loader
    val_samples: Samples
    progress: Progress

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.dataset.info.classes


def train(config: TrainConfig, console: Console) -> Path:
    """Train from the start, in a new run folder under `config.output`. Returns the folder.

    Raises HemafastError for what cannot be done (before anything is written), StoppedError on Ctrl-C.
    """
    run = _set_up(config, state=None)
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
    run = _set_up(config, state)
    (folder / CONFIG).write_text(to_json(config), encoding="utf-8")
    _loop(run, folder, console)
    return folder


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`. Raises HemafastError if it is not a run."""
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{folder} is not a run: it holds no readable {CONFIG}.", "Name a folder that `hemafast train` made."
        ) from error
    return checked(TrainConfig, fields)


def _loop(run: Run, folder: Path, console: Console) -> None:
    config, progress = run.config, run.progress
    with Journal(folder, console, first_epoch=progress.epochs_done + 1) as journal:
        _announce(run, folder)
        save_last(folder / LAST, _state(run))  # so that a run stopped in its first epoch can be resumed too
        try:
            for epoch in range(progress.epochs_done, config.epochs):
                with journal.bar(epoch + 1, config.epochs, run.train_batches.images) as bar:
                    measured = _train_epoch(run, epoch, bar)
                started = time.perf_counter()
                outcome = validate(
                    run.model, run.steps, run.val_batches, run.val_samples, Totals(len(run.classes), run.machine.device)
                )
                measured |= _validation_row(outcome, time.perf_counter() - started)
                progress.epochs_done = epoch + 1
                if measured["val_macro_f1"] > progress.best_f1:
                    progress.best_f1, progress.best_epoch = measured["val_macro_f1"], epoch + 1
                    save_best(folder / BEST, run.model, _card(run))
                journal.epoch({"epoch": epoch + 1, **measured})
                logger.info(_epoch_line(epoch + 1, config.epochs, measured))
                save_last(folder / LAST, _state(run))
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
    if not np.isfinite(loss):
        raise HemafastError(
            f"The training loss is {loss} in epoch {epoch + 1}; the checkpoint before it is intact.",
            "Lower the learning rate with --lr.",
        )
    return {
        "lr": lr,
        "train_loss": loss,
        "train_macro_f1": macro_f1(confusion),
        "train_accuracy": accuracy(confusion),
        "train_seconds": seconds,
        "train_images_per_second": totals.images / seconds,
        "data_wait_share": waited / seconds,
    }


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


def _set_up(config: TrainConfig, state: dict[str, Any] | None) -> Run:
    """Build everything the loop needs, from scratch or from a checkpoint's state; writes nothing."""
    allocator = tune_allocator()
    machine = choose_machine(
        device=config.device, amp=config.amp, compiled=config.compile, threads=config.threads, allocator=allocator
    )
    dataset = open_dataset(config.data)
    train_samples, val_samples = dataset.samples(TRAIN), dataset.samples(VAL)
    torch.manual_seed(config.seed)
    classes = dataset.info.classes
    if state is None:
        model, origin = build_initial_model(
            config.model, len(classes), config.image_size, pretrained=config.pretrained, weights=config.weights
        )
        started_from = origin.detail
    else:
        _refuse_other_data(state, dataset)
        model, started_from = build_model(config.model, len(classes), config.image_size), state["started_from"]
    model.to(machine.device)
    counts = dataset.counts(TRAIN)
    loss = build_loss(counts, weighted=config.weighted_loss, label_smoothing=config.label_smoothing).to(machine.device)
    shape = graph_shape(config, machine, train_samples.packed_size)
    batches = train_loader(train_samples, policy=config.policy, seed=config.seed, shape=shape)
    steps = config.epochs * len(batches)
    run = Run(
        config=config,
        machine=machine,
        dataset=dataset,
        model=model,
        started_from=started_from,
        optimizer=build_optimizer(model, lr=config.lr, weight_decay=config.weight_decay),
        steps=Steps(model, loss, machine),
        schedule=one_cycle(config.lr, steps) if config.onecycle else constant(config.lr),
        train_batches=batches,
        val_batches=eval_loader(val_samples, shape=shape),
        val_samples=val_samples,
        progress=Progress(),
    )
    if state is not None:
        _restore(run, state)
    return run


def graph_shape(config: TrainConfig, machine: Machine, packed_size: int) -> GraphShape:
    """The input graph that `config` asks for; `auto` input takes packed pixels, which cost no decoding."""
    return GraphShape(
        device=machine.loader_device,
        packed=config.input != "files",
        packed_size=packed_size,
        image_size=config.image_size,
        batch_size=config.batch_size,
        threads=machine.loader_threads,
    )


def _state(run: Run) -> dict[str, Any]:
    progress = run.progress
    return {
        "progress": {name: getattr(progress, name) for name in progress.__slots__},
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.steps.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if run.machine.device == "cuda" else [],
        "started_from": run.started_from,
        "classes": list(run.classes),
        "data_fingerprint": run.dataset.info.fingerprint,
    }


def _restore(run: Run, state: dict[str, Any]) -> None:
    try:
        run.model.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.steps.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"])
        if run.machine.device == "cuda" and state["cuda_rng"]:
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        run.progress = Progress(**state["progress"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise HemafastError(f"The checkpoint does not fit the run ({error}).", "Start the run anew.") from error


def _refuse_other_data(state: dict[str, Any], dataset: Dataset) -> None:
    if tuple(state["classes"]) != dataset.info.classes:
        raise HemafastError(
            f"The checkpoint knows {len(state['classes'])} classes, {dataset.folder} has {len(dataset.info.classes)} "
            "or others.",
            "Resume with the data the run began with.",
        )
    if state["data_fingerprint"] != dataset.info.fingerprint:
        raise HemafastError(
            f"{dataset.folder} is not the data the run began with (its fingerprint differs).",
            "Prepare the same archives with the same settings again, or start a new run.",
        )


def _card(run: Run) -> ModelCard:
    return ModelCard(
        backbone=run.config.model,
        classes=run.classes,
        image_size=run.config.image_size,
        epoch=run.progress.epochs_done,
        started_from=run.started_from,
        data_fingerprint=run.dataset.info.fingerprint,
        drawn_data=run.dataset.info.drawn,
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
    source = "encoded files" if config.input == "files" else "packed pixels, memory-mapped"
    size = (run.train_batches.packed_bytes + run.val_batches.packed_bytes) / 2**20
    logger.info("input: %s (%.0f MiB packed)", source, size)
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
