"""Which images make up each batch and how each is seen: a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemafast.data.augment import Policy, Views, draw_views
from hemafast.data.sampling import epoch_order
from hemafast.errors import HemafastError


class Draw(NamedTuple):
    """One batch before it has pixels: rows of the split, and how each is seen."""

    rows: npt.NDArray[np.int64]
    views: Views


@dataclass(frozen=True, slots=True)
class Process:
    """Which part of each batch one of several processes trains on."""

    rank: int = 0
    world_size: int = 1


ALONE = Process()


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStream:
    """As many images an epoch as a split has, in batches of `batch_size` and a shorter last one.

    Draws belong to positions of the epoch; how many processes share them changes nothing about them. Every process has
    the same number of training batches. Raises HemafastError if there are too few images for that.
    """

    labels: npt.NDArray[np.int64]
    """Class of each image of the split."""
    batch_size: int
    """Images of one process."""
    packed_size: int
    image_size: int
    policy: Policy
    shuffle: bool
    balanced: float = 0.0
    """Share of an epoch that is drawn evenly from the classes."""
    seed: int = 0
    process: Process = ALONE

    def __post_init__(self) -> None:
        if self.shuffle and self.batch_size < 2:
            raise HemafastError(f"A batch of {self.batch_size} cannot train.", "Use a batch size of 2 or more.")
        if self.shuffle and 0 < len(self.labels) < self.process.world_size:
            raise HemafastError(
                f"{len(self.labels)} training images cannot be shared by {self.process.world_size} processes.",
                "Start fewer processes.",
            )

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self) -> list[tuple[int, int]]:
        """Images of each batch of an epoch: of this process, and of all processes together."""
        whole = (stop - start for start, stop in pairwise(self._bounds()))
        mine = (stop - start for start, stop in self._spans())
        return [(part, all_) for part, all_ in zip(mine, whole, strict=True) if part]

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Draw]:
        """The batches of one epoch from batch `first` on."""
        generator = np.random.default_rng([self.seed, epoch])
        images = len(self.labels)
        if self.shuffle:
            order = epoch_order(self.labels, self.balanced, self.seed, epoch, generator)
        else:
            order = np.arange(images)
        views = draw_views(self.policy, self.packed_size, self.image_size, images, generator)
        filled = ((start, stop) for start, stop in self._spans() if stop > start)
        for start, stop in islice(filled, first, None):
            yield Draw(order[start:stop], views[start:stop])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Begin and end of this process's part of each batch; parts of one batch differ in length by one at most."""
        rank, world_size = self.process.rank, self.process.world_size
        for start, stop in pairwise(self._bounds()):
            images = stop - start
            yield start + images * rank // world_size, start + images * (rank + 1) // world_size

    def _bounds(self) -> list[int]:
        """Where the batches of all processes together begin and end."""
        images, whole = len(self.labels), self.batch_size * self.process.world_size
        bounds = [*range(0, images, whole), images]
        if self.shuffle and len(bounds) > 2 and bounds[-1] - bounds[-2] < 2 * self.process.world_size:
            # Batch norm cannot learn from a lone image, and no process may be left without one: the last two batches
            # share evenly, which leaves each process two images or more from a batch size of 4 on.
            bounds[-2] = (bounds[-3] + bounds[-1]) // 2
        return bounds
