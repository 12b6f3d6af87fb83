"""A picture of the policies: the same cells under each of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.data.augment import Policy
from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.samples import Samples
from hemafast.data.stream import FEWEST
from hemafast.files import make_folder, writing
from hemafast.pictures import save, subplots
from hemafast.preparation.split import TRAIN

Pixels = npt.NDArray[np.uint8]

_GAP = 4  # white pixels between two cells


def write_preview(
    data: Path, target: Path, policies: Mapping[str, Policy], *, cells: int, draws: int, image_size: int, seed: int
) -> None:
    """Draw the same `cells` training images in `draws` rows under each policy, as a PNG.

    The input graph makes the views, as in training. Raises HemafastError if `data` is not a prepared
    data set, or if `target` cannot be written.
    """
    dataset = open_dataset(data)
    make_folder(target.parent)
    samples = _choose(dataset.samples(TRAIN, image_size), cells)
    rows = [
        (name if draw == 0 else "", views)
        for name, policy in policies.items()
        for draw, views in enumerate(_views(samples, policy, draws, image_size, seed))
    ]
    figure = _draw(rows, [dataset.info.classes[label] for label in samples.labels])
    with writing(target):
        save(figure, target)


def _choose(samples: Samples, cells: int) -> Samples:
    """Images of all classes in turn, each time of another domain."""
    by_class = []
    for number, label in enumerate(np.unique(samples.labels)):
        of_domains = [
            np.flatnonzero((samples.labels == label) & (samples.domains == domain))
            for domain in np.roll(np.unique(samples.domains), number)
        ]
        by_class.append(list(_in_turn(of_domains)))
    return samples.select(np.array(list(islice(_in_turn(by_class), cells))))


def _in_turn(lists: Iterable[Iterable[int]]) -> Iterator[int]:
    """The first of each list, then the second of each, and so on."""
    for group in zip_longest(*lists):
        yield from (value for value in group if value is not None)


def _views(samples: Samples, policy: Policy, draws: int, image_size: int, seed: int) -> list[Pixels]:
    """For each of `draws` epochs: uint8 (cells, image_size, image_size, 3) in the order of `samples`."""
    shape = GraphShape("cpu", "packed", samples.packed_size, image_size, max(len(samples), FEWEST), 1)
    loader = train_loader(samples, policy=policy, seed=seed, shape=shape)
    views = []
    for _ in range(draws):
        (batch,) = loader.epoch()
        ordered = np.empty((len(samples), image_size, image_size, 3), np.uint8)
        ordered[batch.rows.numpy()] = batch.images.permute(0, 2, 3, 1).numpy()
        views.append(ordered)
    return views


def _draw(rows: list[tuple[str, Pixels]], classes: list[str]) -> Any:
    cells, side = rows[0][1].shape[:2]
    figure, axes = subplots(len(rows), width=1.1 * cells, height=1.15, columns=1)
    for axis, (name, views) in zip(axes, rows, strict=True):
        framed = np.pad(views, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=255)
        axis.imshow(np.concatenate(list(framed), axis=1), interpolation="lanczos")
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        points = min(10, 110 / max(len(name), 1))  # as long as the row is high
        axis.set_ylabel(name, fontsize=points, weight="bold")
    for column, label in enumerate(classes):
        axes[0].text((column + 0.5) * side + column * _GAP, -0.06 * side, label, ha="center", fontsize=7)
    return figure
