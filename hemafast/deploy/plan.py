"""What is to be classified, by what, and how: all of it looked for before anything is read."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hemafast.config import Amp, Device, TrainConfig
from hemafast.deploy.images import Image, list_images
from hemafast.deploy.models import Model, by_view, load_models
from hemafast.deploy.windows import Windows, choose_windows
from hemafast.engine.machine import Machine, machine_for
from hemafast.errors import HemafastError
from hemafast.run_folder import BEST, CONFIG, LOG

_RANGES = {"um_per_pixel": (0.001, 100), "abstain_below": (0, 1), "batch_size": (1, 4096)}
_REMEDY = "Choose one yourself with --abstain-below, as 0.7."

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How images are to be classified."""

    um_per_pixel: float | None = None
    """Micrometres that a pixel of every image spans; by default what the names of folders and zips say."""
    tta: bool = False
    """Take the mean over the eight symmetries of each image."""
    abstain: bool = False
    """Name no class below the confidence that was chosen on validation images."""
    abstain_below: float | None = None
    """Name no class below this confidence."""
    batch_size: int = 64
    """Images that are classified at once."""
    device: Device = "auto"
    amp: Amp = "auto"
    """Precision; `auto` stays with fp32 on a CPU."""

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                option = f"--{name.replace('_', '-')}"
                raise HemafastError(
                    f"{option} {value}: it must be from {least} to {most}.", "Correct it and try again."
                )
        if self.abstain and self.abstain_below is not None:
            raise HemafastError("--abstain and --abstain-below exclude each other.", "Give one of them.")


@dataclass(frozen=True, slots=True)
class Group:
    """Models that look at the same part of an image at the same size."""

    models: tuple[Model, ...]
    windows: Windows
    """The part that they look at."""

    @property
    def size(self) -> int:
        """Side of the squares that it is scaled to."""
        return self.models[0].view.packed_size


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be classified by what, once all of it was found to be there and to fit together."""

    images: tuple[Image, ...]
    groups: tuple[Group, ...]
    machine: Machine
    threshold: float | None
    """Least confidence with which a class is named; None to name one always."""
    options: Options

    @property
    def models(self) -> list[Model]:
        """All models of all groups."""
        return [model for group in self.groups for model in group.models]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.models[0].card.classes


def sort_named(named: Sequence[str]) -> tuple[list[Path], list[str]]:
    """What is a run folder or a .safetensors file, and all else."""
    models = [name for name in named if _is_model(Path(name))]
    return [Path(name) for name in models], [name for name in named if name not in models]


def make_plan(models: Sequence[Path], paths: Sequence[str], options: Options | None = None) -> Plan:
    """Look for everything that is needed: models in run folders or files, images in files, folders, zips and globs.

    Raises HemafastError for what is not there, cannot be trusted, or does not fit together.
    """
    options = options or Options()
    if not paths:
        raise HemafastError("No images are named.", "Name files, folders, zips, or a quoted glob.")
    machine = _choose_machine(options)
    loaded = load_models(models, machine.device)
    images = tuple(list_images(paths))
    return Plan(
        images=images,
        groups=tuple(
            Group(group, choose_windows(images, group[0].view, options.um_per_pixel)) for group in by_view(loaded)
        ),
        machine=machine,
        threshold=_choose_threshold(loaded, options),
        options=options,
    )


def _is_model(path: Path) -> bool:
    """A run that has no best model yet is one too, so that it is not searched for images."""
    is_run = (path / BEST).is_file() or all((path / name).is_file() for name in (CONFIG, LOG))
    return is_run or path.suffix == ".safetensors"


def _choose_machine(options: Options) -> Machine:
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    # On a CPU the faster of bf16 and fp32 depends on the network, and a trial would take longer than most predictions.
    amp = "off" if options.amp == "auto" and not on_gpu else options.amp
    return machine_for(TrainConfig(amp=amp, compile="off"), options.device)


def _choose_threshold(models: Sequence[Model], options: Options) -> float | None:
    if not options.abstain:
        return options.abstain_below
    if len(models) > 1:
        raise HemafastError("No threshold was chosen for several models as one.", _REMEDY)
    file, calibration = models[0].file, models[0].card.calibration
    if calibration is None:
        raise HemafastError(
            f"No threshold was chosen for {file}.", f"Run `hemafast evaluate {file.parent}`, or use --abstain-below."
        )
    if calibration.threshold is None:
        raise HemafastError(
            f"At no confidence was {file} right in {calibration.target:.0%} of its validation images.", _REMEDY
        )
    if options.tta:
        logger.warning("the threshold was chosen without --tta, which changes confidences")
    return calibration.threshold
