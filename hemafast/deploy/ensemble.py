"""Several models as one: the sum of their calibrated probabilities."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.model import Model
from hemafast.engine.checkpoint import View
from hemafast.engine.machine import Machine
from hemafast.errors import HemafastError
from hemafast.preparation.image_checks import Pixels


class Ensemble:
    """Models of one view as one: from squares to the sum of their probabilities."""

    def __init__(self, models: Sequence[Model], machine: Machine, batch_size: int, *, tta: bool = False) -> None:
        self._models, self._tta = models, tta
        packed_size, sizes = models[0].card.view.packed_size, {model.card.image_size for model in models}
        self._graphs = {size: EvalGraph(packed_size, size, machine, batch_size) for size in sizes}

    @torch.inference_mode()
    def __call__(self, squares: Sequence[Pixels]) -> Tensor:
        """Probabilities summed over the models, fp32 (n, classes) on the device, of uint8 (size, size, 3) squares.

        With `tta`, those of each model are the mean over the eight symmetries of its input.
        """
        images = {size: graph(squares) for size, graph in self._graphs.items()}
        return torch.stack([self._probabilities(model, images[model.card.image_size]) for model in self._models]).sum(0)

    def _probabilities(self, model: Model, images: Tensor) -> Tensor:
        forms = symmetries(images) if self._tta else [images]
        return torch.stack([(model.logits(form) / model.card.temperature).softmax(dim=1) for form in forms]).mean(0)


def symmetries(images: Tensor) -> Iterator[Tensor]:
    """The eight flips and quarter turns of (n, channels, size, size), in channels_last."""
    for turned in (images, images.transpose(2, 3)):
        for axes in ((), (2,), (3,), (2, 3)):
            yield turned.flip(axes).contiguous(memory_format=torch.channels_last)


def by_view(models: Sequence[Model]) -> list[tuple[Model, ...]]:
    """The models in groups that see the same part of an image at the same size."""
    views: list[View] = []  # they hold dicts and cannot be keys of one
    for model in models:
        if model.card.view not in views:
            views.append(model.card.view)
    return [tuple(model for model in models if model.card.view == view) for view in views]


def refuse_other_classes(models: Sequence[Model]) -> None:
    """Raise HemafastError if the models do not share their classes."""
    first, *others = models
    for other in others:
        if other.classes != first.classes:
            raise HemafastError(
                f"{first.file} and {other.file} do not have the same classes in the same order: "
                f"{', '.join(first.classes)} against {', '.join(other.classes)}.",
                "Predict with one of them.",
            )
