"""Decide everything about a run from its settings, the machine and the data. All later code reads this plan."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from hemafast.config import Device, TrainConfig
from hemafast.data.augment import Policy, named_policy
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.samples import Samples
from hemafast.engine.captured import why_not
from hemafast.engine.checkpoint import DRAWN_WARNING
from hemafast.engine.distributed import World
from hemafast.engine.machine import Choice, Machine, amp_of, choose_input, has_precision, machine_for, reading, room_of
from hemafast.engine.teacher import refuse_strange_teacher
from hemafast.engine.trial import decide
from hemafast.errors import HemafastError, name_some
from hemafast.lineage import PACKAGED, Lineage, as_lineage, fitting_lineage
from hemafast.nvidia import uses_gpu
from hemafast.preparation.schema import QUARANTINED
from hemafast.preparation.split import TEST, TRAIN, VAL
from hemafast.reading import cause
from hemafast.words import counted

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is decided about a run before its objects are built."""

    settings: TrainConfig
    """The settings with batch size, precision and compiling decided. Device, precision, threads and the source of the
    pixels are in `machine` and `graph`, even where the settings say `auto`."""
    dataset: Dataset
    train: Samples
    val: Samples
    machine: Machine
    graph: GraphShape
    """The input graph, with device, source, batch size, image size and threads."""
    policy: Policy
    """Augmentation of the training images."""
    lineage: Lineage | None
    """How the classes are related; None if that is not known and not needed."""
    warnings: tuple[str, ...] = ()
    """What differs from the machine that the run began on, and from what was asked for."""

    def to_json(self) -> dict[str, Any]:
        """The content of machine.json."""
        return {**asdict(self.machine), "input": asdict(self.graph), "policy": self.policy.to_plain()}


def settle(config: TrainConfig, world: World, saved: dict[str, Any] | None = None) -> Plan:
    """The plan of a new run, or of a run that continues from the state `saved` in its checkpoint; collective.

    Raises HemafastError if this machine or this data cannot do what the settings ask for.
    """
    dataset = open_dataset(config.data, config.fold, config.domains)
    if saved is not None:
        _refuse_other_data(saved, dataset)
    _refuse_one_class(config, dataset)
    lineage = _lineage_of(config, dataset.info.classes, saved)
    refuse_strange_teacher(config, dataset)
    tried: Sequence[Any] = ()
    if saved is None:  # trials take seconds, and come behind all that may be refused
        config, tried = decide(config, dataset, world)
    train, val = (dataset.samples(split, config.image_size) for split in (TRAIN, VAL))
    kept = config if saved is None else world.broadcast(_with_first_choices(config, saved))
    machine, graph = machine_and_graph(kept, config.device, train, val, world=world)
    if kept.amp != config.amp:
        tried = [Choice("precision", machine.precision, "the run began in it")]
    return Plan(
        settings=config,
        dataset=dataset,
        train=train,
        val=val,
        machine=machine.with_choices([*tried, *choices_of_a_card(config, machine, alone=world.alone)]),
        graph=graph,
        policy=policy_of(config),
        lineage=lineage,
        warnings=() if saved is None else _other_precision(saved, machine),
    )


def _refuse_one_class(config: TrainConfig, dataset: Dataset) -> None:
    if config.method is None and len(dataset.info.classes) < 2:
        raise HemafastError(
            f"{dataset.folder} has one class, {dataset.info.classes[0]}: there is nothing to tell apart.",
            "Prepare a folder for each of several classes, or learn without labels: `hemafast pretrain`.",
        )


def announce(plan: Plan, started_from: str) -> None:
    """Log the plan: each decision with its reason, the data, the network, and warnings."""
    info = plan.dataset.info
    for choice in plan.machine.choices:
        logger.info("%s: %s (%s)", choice.name, choice.value, choice.reason)
    logger.info(
        "%s and %s of %s, %s, fingerprint %s",
        counted(len(plan.train), "training image"),
        counted(len(plan.val), "validation image"),
        ", ".join(plan.dataset.domains),
        counted(len(info.classes), "class"),
        info.fingerprint[:12],
    )
    if TEST in info.counts:
        logger.info("%s held out", counted(len(plan.dataset.images(TEST)), "test image is", "test images are"))
    announce_weights(plan, started_from)
    if untrained := untrained_classes(plan.dataset):
        logger.warning("no training image of %s: the model cannot learn it", "; ".join(untrained))
    if info.drawn:
        logger.warning(DRAWN_WARNING)


def announce_weights(plan: Plan, started_from: str) -> None:
    """Log the network, its first weights, and the warnings of the plan."""
    settings = plan.settings
    logger.info("%s at %d px, started from %s", settings.model, settings.image_size, started_from)
    for line in plan.warnings:
        logger.warning(line)
    if started_from.startswith("RANDOM"):
        logger.warning("TRAINING STARTS FROM %s: expect a far lower score in the same time", started_from)


def untrained_classes(dataset: Dataset) -> list[str]:
    """Each class of the archives without a training image, with its domains and what became of its images."""
    table, val = dataset.files.images, dataset.images(VAL)
    table = table[table["domain"].isin(dataset.domains) & ~table["label"].isin(dataset.images(TRAIN)["label"])]
    return [
        f"{label} of {' and '.join(sorted(set(images['domain'])))} ({(val['label'] == label).sum()} for validation, "
        f"{(images['verdict'] == QUARANTINED).sum()} quarantined)"
        for label, images in table.groupby("label")
    ]


def batch_size_of(config: TrainConfig) -> int:
    """The batch size as a number. Raises HemafastError for `auto`."""
    if config.batch_size == "auto":
        raise HemafastError("The batch size has not been decided yet.", "Give --batch-size a number.")
    return config.batch_size


def policy_of(config: TrainConfig) -> Policy:
    """The augmentation that `config` asks for."""
    changes = {one.name: getattr(config, one.name, None) for one in fields(Policy)}
    return named_policy(config.policy, **changes)


def _lineage_of(config: TrainConfig, classes: Sequence[str], saved: dict[str, Any] | None) -> Lineage | None:
    """A run keeps the tree that it began with, whatever becomes of the file."""
    if saved is not None and saved.get("lineage"):
        return _saved_lineage(saved["lineage"], classes)
    needed = config.lineage_weight > 0 or config.stage_temperature > 0
    lineage = fitting_lineage(config.lineage, classes, needed=needed)
    if needed and lineage is not None:
        _refuse_without_effect(config, lineage, classes)
    return lineage


def _refuse_without_effect(config: TrainConfig, lineage: Lineage, classes: Sequence[str]) -> None:
    """Raise HemafastError if a loss is asked for that this tree turns into plain cross-entropy."""
    lineages, stages = len(lineage.groups(classes)[0]), len({*lineage.stages} & {*classes})
    for name, count, what in (("lineage_weight", lineages, "lineage"), ("stage_temperature", stages, "stage")):
        if getattr(config, name) and count < 2:
            raise HemafastError(
                f"{name} = {getattr(config, name)} has no effect: the classes of the data are of "
                f"{counted(count, what)} in {config.lineage or PACKAGED}.",
                "Leave it out, or name a tree for these classes with --lineage.",
            )


def _saved_lineage(plain: Any, classes: Sequence[str]) -> Lineage:
    try:
        lineage = as_lineage(plain)
    except ValueError as error:
        raise HemafastError(f"The checkpoint holds no tree ({cause(error)}).", "Start a new run.") from error
    if missing := lineage.lacks(classes):
        raise HemafastError(f"The checkpoint holds a tree without {name_some(missing, 3)}.", "Start a new run.")
    return lineage


def machine_and_graph(
    config: TrainConfig, device: Device, *splits: Samples, world: World | None = None
) -> tuple[Machine, GraphShape]:
    """How to run here under `config` but on `device`, and the input graph for `splits`; collective.

    All processes take the precision, the compiling and the input of the first, and the input fits into the memory of
    each. Tunes the allocator of this process. Raises HemafastError in all processes if one cannot follow.
    """
    world = world or World()
    machine = _machine_as_first(config, device, world)
    room = room_of(machine)
    source = choose_input(
        config.input,
        machine,
        room.least(world.gather(room)),
        packed_bytes=sum(samples.packed.nbytes for samples in splits),
        file_bytes=sum(int(samples.sizes.sum()) for samples in splits),
    )
    machine = reading(machine, source, threads=config.threads, processes=world.local_size)
    graph = GraphShape(
        device=machine.loader_device,
        source=source.value,  # type: ignore[arg-type] # choose_input yields nothing else
        packed_size=splits[0].packed_size,
        image_size=config.image_size,
        batch_size=batch_size_of(config),
        threads=machine.loader_threads,
        compiled=machine.compiled,
    )
    return machine, graph


def _machine_as_first(config: TrainConfig, device: Device, world: World) -> Machine:
    """How to run here, with the precision and the compiling that the first process has chosen."""
    mine = world.together(lambda: machine_for(config, device, world.local_size))
    precision, compiled = world.broadcast((mine.precision, mine.compiled))
    asked = replace(config, amp=amp_of(precision), compile="on" if compiled else "off")
    same = (mine.precision, mine.compiled) == (precision, compiled)
    return world.together(lambda: mine if same else machine_for(asked, device, world.local_size))


def choices_of_a_card(config: TrainConfig, machine: Machine, *, alone: bool) -> list[Choice]:
    """How a training step runs on a GPU: as one graph or not, and with which arithmetic; nothing on a CPU."""
    if machine.device != "cuda":
        return []
    reason = why_not(config, machine, alone=alone)
    graph = Choice("CUDA graph", "off" if reason else "the training step", reason or "one launch for all its kernels")
    found = Choice("convolutions", "cuDNN's fastest", "tried once for each shape")
    if machine.precision != "fp32":
        return [graph, found]
    return [graph, found, Choice("fp32", "TF32 in convolutions", "torch's default; matrix products are in full fp32")]


def _first_precision(saved: dict[str, Any]) -> str | None:
    """The precision that a checkpoint was trained in; None if it is an old one that does not say."""
    return saved.get("precision") or ("fp16" if saved["scaler"] else None)


def _other_precision(saved: dict[str, Any], machine: Machine) -> tuple[str, ...]:
    before, now = _first_precision(saved), machine.precision
    if before in (None, now):
        return ()
    here = "this card" if machine.device == "cuda" else "this CPU"
    how = " with scaled gradients" if now == "fp16" else ""
    return (f"precision: the run began in {before}; {here} trains in {now}{how}",)


def _with_first_choices(config: TrainConfig, saved: dict[str, Any]) -> TrainConfig:
    """The settings with `auto` replaced by what the run began with, where this machine has it.

    That is precision, compiled or not, decoded or packed pixels.
    """
    precision = _first_precision(saved)
    if config.amp == "auto" and precision is not None and has_precision(precision, config.device):
        config = replace(config, amp=amp_of(precision))
    if config.compile == "auto" and not config.sync_norm:  # older versions compiled both together
        config = replace(config, compile="on" if saved["compiled"] else "off")
    if config.input == "auto" and saved["loader"]["pixels"] == "decoded":
        return replace(config, input="files")
    on_gpu = uses_gpu(config.device)  # where packed pixels may also be resident
    return config if on_gpu or config.input != "auto" else replace(config, input="packed")


def _refuse_other_data(saved: dict[str, Any], dataset: Dataset) -> None:
    if tuple(saved["classes"]) != dataset.info.classes:
        raise HemafastError(
            f"The checkpoint was trained on other classes ({len(saved['classes'])}) than {dataset.folder} has "
            f"({len(dataset.info.classes)}).",
            "Resume with the data the run began with.",
        )
    if saved["data_fingerprint"] != dataset.info.fingerprint:
        raise HemafastError(
            f"{dataset.folder} is not the data the run began with: the fingerprint differs.",
            "Prepare the same archives with the same settings again, or start a new run.",
        )
