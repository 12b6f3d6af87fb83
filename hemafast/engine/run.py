"""Everything that a run works on: built from settings, or brought back from a checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from hemafast.config import AUTO_FIELD_OF_VIEW, Compile, Device, TrainConfig, checked, to_plain
from hemafast.data.augment import Policy, named_policy
from hemafast.data.dataset import Dataset, Samples, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import Loader, eval_loader, train_loader
from hemafast.engine.checkpoint import DRAWN_WARNING, ModelCard, View  # noqa: F401
from hemafast.engine.compiling import Compiler
from hemafast.engine.course import CountedCourse, Course, TimedCourse, size_at
from hemafast.engine.depthwise import use_own_gradients
from hemafast.engine.distributed import World
from hemafast.engine.machine import Machine, choose_input, choose_machine, tune_allocator
from hemafast.engine.optimizer import build_optimizer, load_optimizer
from hemafast.engine.schedule import Schedule, build_schedule
from hemafast.engine.step import EvalStep, Mix, Totals, TrainStep
from hemafast.errors import HemafastError
from hemafast.folding import fold_norms
from hemafast.model import Classifier, build_model
from hemafast.objective import build_loss
from hemafast.prepare.schema import DatasetInfo
from hemafast.prepare.split import TRAIN, VAL
from hemafast.weights import load_initial_weights

CONFIG = "config.json"
MACHINE = "machine.json"


@dataclass(slots=True)
class Progress:
    """Where a run stands; all of it is in the checkpoint."""

    epochs_done: int = 0
    """Trained and validated."""
    steps_done: int = 0
    """Updates, those that were left out included."""
    steps_validated: int = 0
    """Of these, how many had been done at the last validation."""
    best_f1: float = -1.0
    best_epoch: int = 0
    bad_updates: int = 0
    """Updates that were left out because they were not finite."""
    seconds: float = 0.0
    """Of the epoch under way: how long it has trained."""
    waited: float = 0.0
    """Of these, how long for data."""
    elapsed: float = 0.0
    """Seconds of the whole run so far, its beginning included."""
    ending: float = 0.0
    """Seconds that it will take from its last update to its end, as far as is known."""


@dataclass(slots=True)
class Run:
    """Everything that the loop works on."""

    config: TrainConfig
    machine: Machine
    world: World
    dataset: Dataset
    model: Classifier
    ema: Any
    """timm's ModelEmaV3, or None."""
    started_from: str
    optimizer: torch.optim.Optimizer
    train_step: TrainStep
    eval_step: EvalStep
    course: Course
    schedule: Schedule
    train_batches: Loader
    val_batches: Loader
    val_samples: Samples
    totals: Totals
    """Of the epoch under way."""
    progress: Progress

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.dataset.info.classes

    @property
    def scored_model(self) -> Classifier:
        """The model that validates and is kept as best: the averaged one where there is one."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def over(self) -> bool:
        """Whether it is at its end, the last validation included."""
        return _over(self.course, self.progress)

    @property
    def tick(self) -> int:
        """How far it is on its course."""
        return self.course.tick(self.progress)

    @property
    def image_size(self) -> int:
        """Side in pixels whose turn it is."""
        return size_at(self.tick, self.course.ticks, (*self.config.growing_from, self.config.image_size))

    @property
    def updates(self) -> int:
        """Updates an epoch."""
        return -(-len(self.train_batches) // self.config.accumulate)


def read_config(folder: Path) -> TrainConfig:
    """The settings of the run in `folder`. Raises HemafastError if it is not a run."""
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{folder} is not a run: it holds no readable {CONFIG}.", "Name a folder that `hemafast train` made."
        ) from error
    return checked(TrainConfig, fields)


def set_up(
    config: TrainConfig, state: dict[str, Any] | None = None, world: World | None = None, *, changed: bool = False
) -> Run:
    """Build everything the loop needs, from scratch or from a checkpoint's state; writes nothing.

    `changed` says that the settings are not those of the checkpoint: the epoch under way begins anew.
    """
    world = world or World()
    dataset = open_dataset(config.data, config.fold, config.domains)
    train_samples, val_samples = (dataset.samples(split, config.image_size) for split in (TRAIN, VAL))
    machine, shape = machine_for(_as_begun(config, state), config.device, train_samples, val_samples, world=world)
    torch.manual_seed(config.seed)
    model, started_from = _build(config, dataset, machine, state)
    ema = _averaged(model.to(machine.device), config.ema)
    use_own_gradients(model, machine)
    if not machine.compiled:
        for network in (model, ema.module) if ema is not None else (model,):
            fold_norms(network)
    optimizer = build_optimizer(
        model, weight_decay=config.weight_decay, layer_decay=config.layer_decay, device=machine.device
    )
    batches = train_loader(
        train_samples,
        policy=policy_of(config),
        seed=config.seed,
        shape=shape,
        sampler=config.sampler,
        process=world.process,
    )
    train_step, eval_step = _steps(config, model, ema, dataset, optimizer, machine, world)
    updates = -(-len(batches) // config.accumulate)
    course = _course_of(config, updates)
    run = Run(
        config=config,
        machine=machine,
        world=world,
        dataset=dataset,
        model=model,
        ema=ema,
        started_from=started_from,
        optimizer=optimizer,
        train_step=train_step,
        eval_step=eval_step,
        course=course,
        schedule=build_schedule(config.schedule, config.lr, course.ticks, config.warmup),
        train_batches=batches,
        val_batches=eval_loader(val_samples, shape=shape, process=world.process),
        val_samples=val_samples,
        totals=Totals(len(dataset.info.classes), machine.device),
        progress=Progress(),
    )
    if state is not None:
        _restore(run, state, changed=changed)
    else:
        _resize(run, run.image_size)
    return run


def _course_of(config: TrainConfig, updates: int) -> Course:
    return CountedCourse(config.epochs, updates) if config.time_budget is None else TimedCourse(config.time_budget)


def _over(course: Course, progress: Progress) -> bool:
    return course.over(progress) and progress.steps_validated == progress.steps_done


def finished(stored: dict[str, Any], config: TrainConfig) -> bool:
    """Whether a run with the progress `stored` in its checkpoint has nothing left to do under `config`."""
    try:
        return _over(_course_of(config, updates=1), Progress(**stored))
    except TypeError:
        return False  # it is no progress, as whoever restores it will say


def _build(
    config: TrainConfig, dataset: Dataset, machine: Machine, state: dict[str, Any] | None
) -> tuple[Classifier, str]:
    """The model, and where its weights come from; they are loaded only where no checkpoint has them."""
    if state is not None:
        _refuse_other_data(state, dataset)
    model = build_model(
        config.model,
        len(dataset.info.classes),
        config.image_size,
        dropout=config.dropout,
        drop_path=config.drop_path,
    )
    if state is not None:
        started_from = str(state["started_from"])
    else:
        origin = load_initial_weights(model.backbone, config.model, pretrained=config.pretrained, file=config.weights)
        started_from = origin.detail
    if config.sync_norm:
        model = _synchronised(model, machine)
    model.freeze(stages=config.freeze_stages, norm=config.freeze_norm)
    return model, started_from


def _averaged(model: Classifier, decay: float | None) -> Any:
    from timm.utils import ModelEmaV3

    # The decay rises to its value, so that a short run is not an average over its beginning.
    return ModelEmaV3(model, decay=decay, use_warmup=True) if decay else None


def _synchronised(model: Classifier, machine: Machine) -> Classifier:
    from timm.layers import convert_sync_batchnorm

    if machine.device != "cuda":
        raise HemafastError("--sync-norm needs GPUs: torch has it for no CPU.", "Leave it out.")
    converted: Classifier = convert_sync_batchnorm(model)
    return converted


def _steps(
    config: TrainConfig,
    model: Classifier,
    ema: Any,
    dataset: Dataset,
    optimizer: torch.optim.Optimizer,
    machine: Machine,
    world: World,
) -> tuple[TrainStep, EvalStep]:
    classes = len(dataset.info.classes)
    loss = build_loss(
        dataset.counts(TRAIN),
        config.loss,
        smoothing=config.label_smoothing,
        focal_gamma=config.focal_gamma,
        logit_tau=config.logit_tau,
    ).to(machine.device)
    mixes = config.mixup > 0 or config.cutmix > 0
    compiler = Compiler(
        enabled=machine.compiled,
        mode=config.compile_mode,
        batch_size=batch_size_of(config),
        cache=config.output,
    )
    train_step = TrainStep(
        model,
        loss,
        optimizer,
        machine,
        compiler,
        clip_grad=config.clip_grad,
        ema=ema,
        mix=Mix(classes, mixup=config.mixup, cutmix=config.cutmix) if mixes else None,
        skip_bad=config.on_nonfinite == "skip",
        shared=world.share(model, machine.device),
    )
    return train_step, EvalStep(ema.module if ema is not None else model, loss, machine, compiler)


def batch_size_of(config: TrainConfig) -> int:
    """The batch size as a number; `auto` must have been decided before."""
    if config.batch_size == "auto":
        raise HemafastError("The batch size has not been decided yet.", "Give --batch-size a number.")
    return config.batch_size


def policy_of(config: TrainConfig) -> Policy:
    """The augmentation that `config` asks for."""
    changes = {field.name: getattr(config, field.name, None) for field in fields(Policy)}
    return named_policy(config.policy, **changes)


def _as_begun(config: TrainConfig, state: dict[str, Any] | None) -> TrainConfig:
    """On resume `auto` stays with what the run began with: the kind of pixels, and whether the step is compiled."""
    if state is None:
        return config
    compiled: Compile = "on" if state["compiled"] else "off"
    decoded = state["loader"]["pixels"] == "decoded"
    on_gpu = torch.cuda.is_available() and config.device != "cpu"
    return replace(
        config,
        compile=compiled if config.compile == "auto" else config.compile,
        input=config.input if config.input != "auto" else "files" if decoded else "auto" if on_gpu else "packed",
    )


def tuned_machine(config: TrainConfig, device: Device, processes: int = 1) -> Machine:
    """How to run here under `config` but on `device`, with `processes` on this host; tunes this one's allocator."""
    return choose_machine(
        device=device,
        amp=config.amp,
        compiled=config.compile,
        threads=config.threads,
        allocator=tune_allocator(),
        processes=processes,
    )


def machine_for(
    config: TrainConfig, device: Device, *splits: Samples, world: World | None = None
) -> tuple[Machine, GraphShape]:
    """How to run here under `config` but on `device`, and the input graph for `splits`."""
    machine = tuned_machine(config, device, world.local_size if world else 1)
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
        batch_size=batch_size_of(config),
        threads=machine.loader_threads,
    )
    return machine.with_choices([source]), shape


def state_of(run: Run) -> dict[str, Any]:
    """Everything a resumed run needs, as tensors, numbers and strings; collective.

    There is no state of a random generator: each batch seeds them (`step.seed_batch`), and all draws of the loader
    belong to its position.
    """
    progress = run.progress
    return {
        "progress": {name: getattr(progress, name) for name in progress.__slots__},
        "model": run.model.state_dict(),
        "ema": run.ema.module.state_dict() if run.ema is not None else {},
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.train_step.scaler.state_dict(),
        "loader": run.train_batches.state_dict(),
        "totals": run.totals.summed(run.world).cpu(),
        "settings": to_plain(run.config),
        "compiled": run.machine.compiled,
        "started_from": run.started_from,
        "classes": list(run.classes),
        "data_fingerprint": run.dataset.info.fingerprint,
    }


def _restore(run: Run, state: dict[str, Any], *, changed: bool) -> None:
    try:
        run.model.load_state_dict(state["model"])
        if run.ema is not None:
            run.ema.module.load_state_dict(state["ema"] or state["model"])
        load_optimizer(run.optimizer, state["optimizer"])
        run.train_step.scaler.load_state_dict(state["scaler"])
        run.progress = Progress(**state["progress"])
        if run.world.first:  # they are sums over all processes
            run.totals.load(state["totals"])
    except (KeyError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise HemafastError(f"The checkpoint does not fit the run ({error}).", "Start the run anew.") from error
    run.train_step.bad.start_from(run.progress.bad_updates)
    if changed:
        _begin_epoch_anew(run)
    else:
        size = state["loader"].get("image_size")
        _resize(run, size if size in run.config.growing_from else run.config.image_size)
        run.train_batches.load_state_dict(state["loader"])


def _resize(run: Run, image_size: int) -> None:
    if image_size != run.train_batches.image_size:
        run.train_batches, run.val_batches = (
            batches.resized(image_size) for batches in (run.train_batches, run.val_batches)
        )


def _begin_epoch_anew(run: Run) -> None:
    """Forget what was done of the epoch under way: its batches are not those of the settings."""
    progress = run.progress
    run.train_batches.load_state_dict({**run.train_batches.state_dict(), "epoch": progress.epochs_done, "batch": 0})
    run.totals = Totals(len(run.classes), run.machine.device)
    progress.steps_done = progress.epochs_done * run.updates
    _resize(run, run.image_size)
    progress.seconds = progress.waited = 0.0


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
    info = run.dataset.info
    return ModelCard(
        backbone=run.config.model,
        classes=run.classes,
        image_size=run.val_batches.image_size,
        view=view_of(info, run.val_samples.packed_size),
        domains=run.dataset.domains or tuple(info.domains),
        epoch=run.progress.epochs_done,
        started_from=run.started_from,
        data_fingerprint=info.fingerprint,
        drawn_data=info.drawn,
    )


def view_of(info: DatasetInfo, packed_size: int) -> View:
    """What the images of a data set show at one of its packed sizes."""
    asked = info.settings["field_of_view"]
    named = {"auto": AUTO_FIELD_OF_VIEW, "whole": None}
    return View(
        packed_size=packed_size,
        field_of_view=named[asked] if asked in named else float(asked),
        um_per_pixel={name: domain.um_per_pixel for name, domain in info.domains.items()},
    )
