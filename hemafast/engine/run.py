"""Everything that a run works on: built from settings, or brought back from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from hemafast.config import Device, TrainConfig, checked
from hemafast.data.augment import Policy, named_policy
from hemafast.data.dataset import Dataset, Samples, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import Loader, eval_loader, train_loader
from hemafast.engine.checkpoint import ModelCard
from hemafast.engine.machine import Machine, choose_input, choose_machine, tune_allocator
from hemafast.engine.schedule import Schedule, constant, one_cycle
from hemafast.engine.step import Steps, build_optimizer
from hemafast.errors import HemafastError
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


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`. Raises HemafastError if it is not a run."""
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{folder} is not a run: it holds no readable {CONFIG}.", "Name a folder that `hemafast train` made."
        ) from error
    return checked(TrainConfig, fields)


def set_up(config: TrainConfig, state: dict[str, Any] | None) -> Run:
    """Build everything the loop needs, from scratch or from a checkpoint's state; writes nothing."""
    dataset = open_dataset(config.data, config.fold)
    train_samples, val_samples = (dataset.samples(split, config.image_size) for split in (TRAIN, VAL))
    machine, shape = machine_for(_same_pixels(config, state), config.device, train_samples, val_samples)
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
    batches = train_loader(
        train_samples, policy=policy_of(config), seed=config.seed, shape=shape, sampler=config.sampler
    )
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


def policy_of(config: TrainConfig) -> Policy:
    """The augmentation that `config` asks for."""
    changes = {field.name: getattr(config, field.name, None) for field in fields(Policy)}
    return named_policy(config.policy, **changes)


def _same_pixels(config: TrainConfig, state: dict[str, Any] | None) -> TrainConfig:
    """On resume `auto` stays with the kind of pixels that the run began with, whatever memory is free now."""
    if state is None or config.input != "auto":
        return config
    decoded = state["loader"]["pixels"] == "decoded"
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    return replace(config, input="files" if decoded else "auto" if on_gpu else "packed")


def machine_for(config: TrainConfig, device: Device, *splits: Samples) -> tuple[Machine, GraphShape]:
    """How to run here under `config` but on `device`, and the input graph for `splits`."""
    machine = choose_machine(
        device=device,
        amp=config.amp,
        compiled=config.compile,
        threads=config.threads,
        allocator=tune_allocator(),
    )
    source = choose_input(
        config.input,
        machine,
        packed_bytes=sum(samples.packed.nbytes for samples in splits),
        file_bytes=sum(int(samples.sizes.sum()) for samples in splits),
    )
    shape = GraphShape(
        device=machine.loader_device,
        source=source.value,  # type: ignore[arg-type] # choose_input yields nothing else
        packed_size=splits[0].packed_size,
        image_size=config.image_size,
        batch_size=config.batch_size,
        threads=machine.loader_threads,
    )
    return replace(machine, choices=(*machine.choices, source)), shape


def state_of(run: Run) -> dict[str, Any]:
    """Everything a resumed run needs, as tensors, numbers and strings."""
    progress = run.progress
    return {
        "progress": {name: getattr(progress, name) for name in progress.__slots__},
        "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.steps.scaler.state_dict(),
        "loader": run.train_batches.state_dict(),
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
        run.train_batches.load_state_dict(state["loader"])
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


def card_of(run: Run) -> ModelCard:
    """What must be known of the model as it is now, in order to use it."""
    return ModelCard(
        backbone=run.config.model,
        classes=run.classes,
        image_size=run.config.image_size,
        epoch=run.progress.epochs_done,
        started_from=run.started_from,
        data_fingerprint=run.dataset.info.fingerprint,
        drawn_data=run.dataset.info.drawn,
    )
