"""The cells of another laboratory as the network sees them, with the labels that some of them have."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hemafast.data.dataset import Dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.deploy.choices import UmPerPixel
from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.inputs import Image, Images, Some, list_inputs, read_images
from hemafast.deploy.labels import Given, read_told
from hemafast.deploy.model import Model
from hemafast.deploy.plan import Options, plan_for
from hemafast.deploy.predict import decoded
from hemafast.errors import HemafastError, name_some
from hemafast.preparation.split import TRAIN
from hemafast.progress import Progress, stage
from hemafast.words import counted

MOST = 4096
"""Images that are read; of more without labels, some are drawn."""

_BATCH = 64

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Images of another laboratory that could be read."""

    names: tuple[str, ...]
    """As `predict` names them; of a prepared data set, the paths in it."""
    pixels: Tensor
    """uint8 (n, 3, image_size, image_size) on the model's device."""
    labels: tuple[str, ...]
    """As the user writes them; "" without a label."""
    groups: tuple[str, ...]
    """Patient or slide; the name of the image where none is known."""
    images: tuple[Image, ...] = ()
    """Where each comes from; empty for a prepared data set."""

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labelled(self) -> npt.NDArray[np.int64]:
        """Places of the cells that have a label."""
        return np.flatnonzero([bool(label) for label in self.labels])


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a user says of the new images."""

    labels: Given = None
    columns: Mapping[str, str] | None = None
    """Names of columns of the table, by role."""
    groups: Path | None = None
    """Table of patients or slides."""
    um_per_pixel: UmPerPixel = None
    bit_depth: int | None = None
    classes: Sequence[str] | None = None
    """Classes of the model that this laboratory tells apart; None for all."""


def read_prepared_cells(model: Model, dataset: Dataset, *, labelled: bool, progress: Progress) -> Cells:
    """The training rows of a prepared data set; its other rows stay unseen, to be scored on.

    Raises HemafastError if the model was trained on this data set.
    """
    if dataset.info.fingerprint == model.card.data_fingerprint:
        raise HemafastError(
            f"{dataset.folder} is the data set that {model.file} was trained on.", "Name images of another laboratory."
        )
    rows, samples = dataset.images(TRAIN, "group"), dataset.samples(TRAIN, model.card.image_size)
    chosen = _drawn(np.zeros(len(samples), dtype=bool)) if not labelled else np.arange(len(samples))
    rows = rows.iloc[chosen]
    return Cells(
        names=tuple(rows["path"]),
        pixels=read_samples(model, samples.select(chosen), progress),
        labels=tuple(rows["label"]) if labelled else ("",) * len(rows),
        groups=tuple(rows["group"]),
    )


def read_samples(model: Model, samples: Samples, progress: Progress) -> Tensor:
    """Images of a prepared data set as the model sees them: uint8 (n, 3, image_size, image_size) on its device."""
    machine, size = model.machine, model.card.image_size
    shape = GraphShape(
        machine.loader_device, "packed", samples.packed_size, size, min(_BATCH, len(samples)), machine.loader_threads
    )
    parts, rows = [], []
    with stage(progress, "reading images", len(samples)):
        for batch in eval_loader(samples, shape=shape).epoch(0):
            parts.append(batch.images.contiguous(memory_format=torch.channels_last))
            rows.append(batch.rows)
            progress.advance(len(batch.rows))
    return torch.cat(parts)[torch.cat(rows).argsort().to(parts[0].device)]


def read_cells(model: Model, images: Images, asked: Asked, classes: Sequence[str], progress: Progress) -> Cells:
    """Read images as `predict` does, and find their labels and groups.

    `classes` are names that a class folder may have besides those that the field knows. Images that cannot be read are
    logged and left out. Raises HemafastError if there are none, or if labels or groups do not fit them.
    """
    listed = list_inputs(images)
    names = [image.name for image in listed]
    labels, groups, _ = read_told(names, asked.labels, columns=asked.columns, groups=asked.groups, classes=classes)
    chosen = _drawn(np.array([bool(label) for label in labels]))
    plan = plan_for(
        [model],
        Some(listed, chosen),
        Options(um_per_pixel=asked.um_per_pixel, bit_depth=asked.bit_depth, batch_size=_BATCH),
    )
    graph, (group,) = EvalGraph(model.card, model.machine, _BATCH), plan.groups
    rows: list[int] = []
    parts: list[Tensor] = []
    errors: dict[int, str] = {}
    with stage(progress, "reading images", len(chosen)), decoded(plan, group) as batches:
        for batch in batches:
            if batch.rows:
                rows += batch.rows
                parts.append(graph(batch.squares).contiguous(memory_format=torch.channels_last))
            errors |= batch.errors
            progress.advance(len(batch.rows) + len(batch.errors))
    _tell(errors, plan.images)
    kept = chosen[rows]
    return Cells(
        names=tuple(names[row] for row in kept),
        pixels=torch.cat(parts),
        labels=tuple(labels[row] for row in kept),
        groups=tuple(groups[row] for row in kept),
        images=tuple(listed[row] for row in kept),
    )


def _drawn(labelled: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Places of all images with a label, and of as many of the others as make MOST; in order."""
    others = np.flatnonzero(~labelled)
    most = max(MOST - int(labelled.sum()), 0)
    if len(others) > most:
        logger.info("%d of %d images without a label are drawn to adapt to", most, len(others))
        others = np.random.default_rng(0).permutation(others)[:most]
    return np.sort(np.concatenate([np.flatnonzero(labelled), others]))


def _tell(errors: Mapping[int, str], images: Sequence[Image]) -> None:
    if not errors:
        return
    row, error = min(errors.items())
    first = f"{images[row].name}: {error}"
    if len(errors) == len(images):
        raise HemafastError(
            f"None of {counted(len(images), 'image')} can be read; the first is {first}.", "Name other images."
        )
    logger.warning("%d of %d images cannot be read and are left out; the first is %s", len(errors), len(images), first)


def refuse_own_images(cells: Cells, dataset: Dataset | None) -> None:
    """Raise HemafastError if a labelled image is one that the model was trained on, by its bytes.

    `dataset` is the training set; without it, a warning says that nothing was compared.
    """
    if not cells.images:
        return
    if dataset is None:
        logger.warning(
            "the training set is not where it was: whether some of the %d labelled images are in it is not known. On "
            "such images the scores are too good",
            len(cells.labelled),
        )
        return
    known = set(dataset.images(TRAIN)["sha256"])
    read = zip(cells.labelled, read_images([cells.images[row] for row in cells.labelled]), strict=True)
    same = [
        cells.names[row] for row, data in read if isinstance(data, bytes) and hashlib.sha256(data).hexdigest() in known
    ]
    if same:
        raise HemafastError(
            f"{len(same)} labelled images are among those that the model was trained on: {name_some(same, 3)}.",
            "Leave them out: scores on them would be too good.",
        )
