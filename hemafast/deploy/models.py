"""One model or several as one: squares of pixels in, calibrated probabilities out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hemafast.deploy.images import begins_formula, refuse_unwritable
from hemafast.deploy.views import ViewGraph
from hemafast.engine.checkpoint import ModelCard, View, load_best, model_file
from hemafast.engine.machine import Machine
from hemafast.errors import HemafastError
from hemafast.folding import fold_norms
from hemafast.model import Classifier
from hemafast.prepare.image_checks import Pixels

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class Model:
    """A trained network, and what must be known to use it."""

    file: Path
    network: Classifier
    card: ModelCard

    @property
    def view(self) -> View:
        """Which part of an image it looks at, and at what size."""
        return self.card.view

    @property
    def temperature(self) -> float:
        """What its logits are divided by; 1 if that was never fitted."""
        return self.card.calibration.temperature if self.card.calibration else 1.0


def load_models(paths: Sequence[Path], device: str) -> list[Model]:
    """The best models of run folders, or of files, on `device`.

    Raises HemafastError if there is none, if one cannot be loaded, or if they do not know the same classes.
    """
    if not paths:
        raise HemafastError("No model is named.", "Name a run folder, or a file that ends in .safetensors.")
    models = []
    for file in dict.fromkeys(model_file(path) for path in paths):
        network, card = load_best(file)
        fold_norms(network.eval().to(device))
        models.append(Model(file, network, card))
    _refuse_names(models[0])
    for model in models[1:]:
        _refuse_other_classes(models[0], model)
    return models


def by_view(models: Sequence[Model]) -> list[tuple[Model, ...]]:
    """The models, those together that look at the same part of an image at the same size."""
    views: list[View] = []  # they hold dicts, and cannot be keys of one
    for model in models:
        if model.view not in views:
            views.append(model.view)
    return [tuple(model for model in models if model.view == view) for view in views]


class Ensemble:
    """Models of one view as one: from squares to the sum of their probabilities."""

    def __init__(self, models: Sequence[Model], machine: Machine, batch_size: int, *, tta: bool = False) -> None:
        self._models, self._machine, self._tta = models, machine, tta
        packed_size, sizes = models[0].view.packed_size, {model.card.image_size for model in models}
        self._views = {size: ViewGraph(packed_size, size, machine, batch_size) for size in sizes}

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """Probabilities, added up over the models: fp32 (n, classes) on the device, of uint8 (size, size, 3) squares.

        With `tta` those of each model are the mean over the eight symmetries of what it sees.
        """
        seen = {size: view(squares) for size, view in self._views.items()}
        return torch.stack([self._probabilities(model, seen[model.card.image_size]) for model in self._models]).sum(0)

    def _probabilities(self, model: Model, images: Tensor) -> Tensor:
        forms = list(symmetries(images)) if self._tta else [images]
        return torch.stack([self._forward(model, form) for form in forms]).mean(0)

    def _forward(self, model: Model, images: Tensor) -> Tensor:
        dtype = _DTYPES.get(self._machine.precision)
        with torch.autocast(self._machine.device, dtype=dtype, enabled=dtype is not None):
            logits = model.network(images)
        probabilities: Tensor = (logits.float() / model.temperature).softmax(dim=1)
        return probabilities


def symmetries(images: Tensor) -> Iterator[Tensor]:
    """The eight flips and quarter turns of (n, channels, size, size), in channels_last."""
    for turned in (images, images.transpose(2, 3)):
        for axes in ((), (2,), (3,), (2, 3)):
            yield turned.flip(axes).contiguous(memory_format=torch.channels_last)


def _refuse_names(model: Model) -> None:
    """Names of classes become cells of a table; whoever made the file may have chosen them for what they do there."""
    for name in model.card.classes:
        refuse_unwritable(name)
        if begins_formula(name):
            raise HemafastError(
                f"{model.file} has a class named {name!r}, which a spreadsheet takes for a formula.",
                "Rename the class.",
            )


def _refuse_other_classes(first: Model, other: Model) -> None:
    if other.card.classes != first.card.classes:
        raise HemafastError(
            f"{first.file} and {other.file} do not know the same classes in the same order: "
            f"{', '.join(first.card.classes)} against {', '.join(other.card.classes)}.",
            "Predict with one of them.",
        )
