"""What to classify, with which models and options: checked before anything is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hemafast.config import Amp, Device
from hemafast.deploy.choices import MODELS, Engine, UmPerPixel
from hemafast.deploy.crops import Crops, choose_crops
from hemafast.deploy.depths import Depths, choose_depths
from hemafast.deploy.inputs import Image, list_images
from hemafast.deploy.model import Model, load_models
from hemafast.deploy.scales import estimator
from hemafast.engine.checkpoint import View
from hemafast.engine.machine import Machine
from hemafast.errors import HemafastError
from hemafast.evaluate.conformal import SET_COVERAGE, SetThresholds, exceptions
from hemafast.run_folder import BEST, is_run
from hemafast.words import counted

_RANGES = {"um_per_pixel": (0.001, 100), "bit_depth": (1, 32), "abstain_below": (0, 1), "batch_size": (1, 4096)}
_REMEDY = "Choose one yourself: abstain_below (--abstain-below), such as 0.7."

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to classify images."""

    um_per_pixel: UmPerPixel = None
    """Micrometres per pixel of every image; "unknown" to see images whole; None for the scale of the domain that a
    folder or zip is named after, else an estimate from the images that are named together."""
    bit_depth: int | None = None
    """Bits that the camera uses of images with more than 8; None for the range that the model was trained with."""
    tta: bool = False
    """Average over the eight symmetries of each image."""
    abstain: bool = False
    """Name no class below the confidence threshold chosen on validation images."""
    abstain_below: float | None = None
    """Name no class below this confidence."""
    sets: bool = False
    """Tell which classes may be the true one, with the coverage that was calibrated on validation images."""
    batch_size: int = 64
    """Images per forward pass."""
    device: Device = "auto"
    amp: Amp = "auto"
    """Autocast precision; `auto` is fp32 on a CPU."""
    engine: Engine = "auto"
    """What computes on a CPU; `auto` tries the int8 graph of the run, if there is one, beside torch."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if name == "um_per_pixel" and value == "unknown":
                continue
            if value is not None and not least <= value <= most:
                option = f"--{name.replace('_', '-')}"
                problem = f"{name} = {value} is not between {least} and {most}."
                raise HemafastError(problem, f"Correct {name} ({option}).")
        if self.abstain and self.abstain_below is not None:
            raise HemafastError("abstain and abstain_below exclude each other.", "Give --abstain or --abstain-below.")


@dataclass(frozen=True, slots=True)
class Group:
    """Models that see the same part of an image at the same size."""

    models: tuple[Model, ...]
    crops: Crops
    """The part that they see."""
    depths: Depths
    """What values of more than 8 bits become."""

    @property
    def size(self) -> int:
        """Side of the squares that crops are scaled to."""
        return self.models[0].card.view.packed_size


@dataclass(frozen=True, slots=True)
class Plan:
    """What to classify with what; everything exists and fits together."""

    images: Sequence[Image]
    groups: tuple[Group, ...]
    threshold: float | None
    """Least confidence with which a class is named; None to always name one."""
    set_thresholds: SetThresholds | None
    """By class, the least probability with which it is in a set; None if no sets are asked for."""
    options: Options

    @property
    def models(self) -> list[Model]:
        """All models of all groups."""
        return [model for group in self.groups for model in group.models]

    @property
    def members(self) -> int:
        """Networks whose answers are compared: of all models, with the members of ensembles among them."""
        return sum(model.members for model in self.models)

    @property
    def machine(self) -> Machine:
        """How the models run."""
        return self.models[0].machine

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.models[0].classes


def sort_named(named: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Split what a user names into models (run folders and files of models) and images."""
    models = [name for name in named if _is_model(Path(name))]
    return [Path(name) for name in models], [name for name in named if name not in models]


def make_plan(models: Sequence[Path], paths: Sequence[str], options: Options) -> Plan:
    """Load models from run folders or files, and list images of files, folders, zips and globs.

    Raises HemafastError for what is missing, cannot be trusted, or does not fit together.
    """
    if not paths:
        raise HemafastError("No images are named.", "Name files, folders, archives, or a quoted glob.")
    if not models:
        raise HemafastError("No model is named.", f"Name a run folder, or a file that ends in {', '.join(MODELS)}.")
    loaded = load_models(models, options.device, options.amp, options.engine)
    first = loaded[0]
    for other in loaded:
        if other.classes != first.classes:
            raise HemafastError(
                f"{first.file} and {other.file} do not have the same classes in the same order: "
                f"{', '.join(first.classes)} against {', '.join(other.classes)}.",
                "Predict with one of them.",
            )
    return plan_for(loaded, list_images(paths), options)


def plan_for(models: Sequence[Model], images: Sequence[Image], options: Options) -> Plan:
    """A plan for loaded models and listed images. Raises HemafastError for options that do not fit the models."""
    views: list[View] = []  # they hold dicts and cannot be keys of one
    for model in models:
        if model.card.view not in views:
            views.append(model.card.view)
    depths = [choose_depths(images, view, options.bit_depth) for view in views]
    estimate = estimator(images, depths[0], models)
    groups = tuple(
        Group(
            models=tuple(one for one in models if one.card.view == view),
            crops=choose_crops(images, view, options.um_per_pixel, estimate),
            depths=own,
        )
        for view, own in zip(views, depths, strict=True)
    )
    return Plan(images, groups, _choose_threshold(models, options), _choose_sets(models, options), options)


def _is_model(path: Path) -> bool:
    """Run folders count before their first epoch too, so that they are not searched for images."""
    return (path / BEST).is_file() or is_run(path) or path.suffix in MODELS


def _choose_threshold(models: Sequence[Model], options: Options) -> float | None:
    if not options.abstain:
        return options.abstain_below
    if len(models) > 1:
        raise HemafastError("No threshold was chosen for several models together.", _REMEDY)
    logger.info("the threshold was chosen on images of %s and holds for such images only", _home_of(models[0]))
    file, calibration = models[0].file, models[0].card.calibration
    if calibration is None:
        remedy = f"Run `hemafast evaluate {file.parent}`, or give abstain_below (--abstain-below)."
        raise HemafastError(f"No threshold was chosen for {file}.", remedy)
    if calibration.threshold is None:
        problem = f"No confidence threshold makes {calibration.target:.0%} of the validation answers of {file} right."
        raise HemafastError(problem, _REMEDY)
    if options.tta:
        logger.warning("the threshold was chosen without --tta, which changes confidences")
    return calibration.threshold


def _choose_sets(models: Sequence[Model], options: Options) -> SetThresholds | None:
    if not options.sets:
        return None
    if len(models) > 1:
        problem = f"No sets were calibrated for {counted(len(models), 'model')} together."
        raise HemafastError(problem, "Leave out sets (--sets), or predict with one run.")
    file, calibration = models[0].file, models[0].card.calibration
    if calibration is None or calibration.set_thresholds is None:
        remedy = f"Run `hemafast evaluate {file.parent}`, or leave out sets (--sets)."
        raise HemafastError(f"No sets were calibrated for {file}.", remedy)
    _say_sets(models[0], calibration.set_thresholds)
    if options.tta:
        logger.warning("the sets were calibrated without --tta, which changes probabilities")
    return calibration.set_thresholds


def _say_sets(model: Model, thresholds: SetThresholds) -> None:
    """Log what the sets promise, and for which classes they cannot."""
    promise = "%.0f %% of the cells of each class have it in their set, if they are like those of %s"
    logger.info(promise, 100 * SET_COVERAGE, _home_of(model))
    for said in exceptions(model.classes, thresholds):
        logger.warning(said)


def _home_of(model: Model) -> str:
    return " and ".join(model.card.domains)
