"""A trained model, of one run or an ensemble, that answers the training images too: its answers become targets.

The student learns from a mean of the label and of the teacher's calibrated probabilities for the same pixels (Hinton et
al. 2015, arXiv 1503.02531; Beyer et al. 2022, arXiv 2106.05237). These are shares of the classes as mixed images have
them, so that every loss, class weight and smoothing acts on them as on any other target.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hemafast.config import TrainConfig
from hemafast.data.dataset import Dataset
from hemafast.engine.checkpoint import ModelCard, load_best, model_file, read_card
from hemafast.engine.machine import Machine
from hemafast.ensemble import resized
from hemafast.errors import HemafastError, name_some
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import Network
from hemafast.preparation.schema import DatasetInfo, field_of_view_of
from hemafast.run_folder import is_run, read_config


class Teacher:
    """Blends the answers of a frozen network into targets."""

    def __init__(
        self, network: Network, card: ModelCard, classes: Sequence[str], machine: Machine, weight: float
    ) -> None:
        self._network, self._card, self._weight = network.eval().requires_grad_(False), card, weight
        self._order = torch.tensor(card.places_of(classes), device=machine.device)
        self._device, self._dtype = machine.device, machine.dtype
        self.digest, self.warnings = "", tuple[str, ...]()

    @torch.no_grad()
    def __call__(self, images: Tensor, targets: Tensor) -> Tensor:
        """Shares of the classes (n, classes).

        Args:
            images: (n, 3, size, size), 0 to 255, as the student sees them.
            targets: labels (n,), or shares (n, classes) of mixed images.
        """
        seen = resized(images, self._card.image_size, images.shape[-1])
        with torch.autocast(self._device, dtype=self._dtype, enabled=self._dtype is not None):
            logits = self._network(seen)
        answers = (logits.float() / self._card.temperature).softmax(1).index_select(1, self._order)
        if targets.ndim == 1:
            targets = torch.zeros_like(answers).scatter_(1, targets[:, None], 1.0)
        return targets.lerp(answers, self._weight)


def open_teacher(settings: TrainConfig, dataset: Dataset, machine: Machine) -> Teacher | None:
    """The teacher of a run; None if the settings name none.

    It answers each image as it is, without quarter turns: training turns images anyway.

    Raises:
        HemafastError: it was trained on other colours than the student sees. `refuse_strange_teacher` knows the rest.
    """
    if settings.teacher is None:
        return None
    file = model_file(settings.teacher)
    network, card = load_best(file)
    if settings.standardize and not all(one.standardize for one in network.networks):
        raise HemafastError(
            f"The teacher {file} does not standardize images, and would see those of this run in strange colours.",
            "Train without --standardize, or name a teacher that was trained with it.",
        )
    for one in network.networks:
        one.quarter_turns = False
    network.quarter_turns = False
    network.to(machine.device).to(memory_format=torch.channels_last)
    fuse_batch_norms(network)
    teacher = Teacher(network, card, dataset.info.classes, machine, settings.teacher_weight)
    with file.open("rb") as content:
        teacher.digest = hashlib.file_digest(content, "sha256").hexdigest()
    teacher.warnings = tuple(_doubts(file, card, settings, dataset.info))
    return teacher


def refuse_strange_teacher(settings: TrainConfig, dataset: Dataset) -> None:
    """Raise HemafastError if there is no such teacher, or if it knows other classes or another part of an image."""
    if settings.teacher is None:
        return
    file = model_file(settings.teacher)
    card = read_card(file)
    ours, theirs = set(dataset.info.classes), set(card.classes)
    if ours != theirs:
        raise HemafastError(
            f"The teacher {file} has other classes than {dataset.folder}: {name_some(sorted(ours ^ theirs), 4)} "
            "only in one of them.",
            "Name a teacher that was trained on the same classes.",
        )
    if card.view.field_of_view != field_of_view_of(dataset.info):
        raise HemafastError(
            f"The teacher {file} sees another part of an image than {dataset.folder} holds.",
            "Name a teacher that was trained on data of the same --field-of-view.",
        )


def _doubts(file: Path, card: ModelCard, settings: TrainConfig, info: DatasetInfo) -> list[str]:
    """What makes scores of the student too good."""
    if card.data_fingerprint != info.fingerprint:
        return ["the teacher was trained on other data, which may hold validation images of this run"]
    folds = {member.fold or 0 for member in card.members}
    if not card.members and is_run(file.parent):
        folds = {read_config(file.parent).fold or 0}
    if folds - {settings.fold or 0}:
        return ["the teacher was trained on validation images of this run: its scores are too good"]
    return []
