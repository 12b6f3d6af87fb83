"""The images and views of each batch, as a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice, pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemafast.data.augment import Policy, Views, draw_views
from hemafast.data.sampling import epoch_order
from hemafast.errors import HemafastError
from hemafast.words import counted


class Draw(NamedTuple):
    """A batch or an epoch without pixels: rows of the split, and their views."""

    rows: npt.NDArray[np.int64]
    views: Views


@dataclass(frozen=True, slots=True)
class Process:
    """The part of each batch for one of several processes."""

    rank: int = 0
    world_size: int = 1


ALONE = Process()

READ_AHEAD = 2
"""Batches that a feed makes before they are asked for."""

FEWEST = 2
"""Images of a process in a training batch. Batch norm learns nothing from a single value per channel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStream:
    """The batches of each epoch: as many images as the split has; the last batch may be shorter.

    With several `views` of each image, a batch holds all its images, then all of them again in other views, and so on.
    Every process has as many images of a batch as the others, because they compare all of them; so up to one less than
    there are processes are left out of an epoch, others in each.

    Draws depend on the position in the epoch, not on the number of processes. Every process has the same number of
    training batches, and at least `FEWEST` images in each: a shorter last batch and the one before it share their
    images evenly or, where these are too few for two batches, become one. Only a split with fewer than `FEWEST` images
    per process has smaller batches. Raises HemafastError if a process would have none.
    """

    labels: npt.NDArray[np.int64]
    """Class of each image of the split."""
    batch_size: int
    """Images per batch of one process."""
    packed_size: int
    image_size: int
    policy: Policy
    shuffle: bool
    balanced: float = 0.0
    """Share of an epoch drawn evenly from the classes."""
    seed: int = 0
    process: Process = ALONE
    views: int = 1
    """Of each image in its batch."""

    def __post_init__(self) -> None:
        if self.shuffle and self.batch_size < FEWEST:
            raise HemafastError(f"A batch size of {self.batch_size} cannot train.", f"Use {FEWEST} or more.")
        if self.shuffle and 0 < len(self.labels) < self.process.world_size:
            raise HemafastError(
                f"{counted(len(self.labels), 'training image is', 'training images are')} too few for "
                f"{counted(self.process.world_size, 'process')}.",
                f"Start at most {len(self.labels)}.",
            )

    def __len__(self) -> int:
        return len(self.sizes())

    def sizes(self) -> list[tuple[int, int]]:
        """Images in each batch of an epoch: of this process, and of all processes together."""
        whole = (stop - start for start, stop in pairwise(self._bounds()))
        mine = (stop - start for start, stop in self._spans())
        return [(part, all_) for part, all_ in zip(mine, whole, strict=True) if part]

    @property
    def batches(self) -> int:
        """Batches per epoch of all processes together."""
        return len(self._bounds()) - 1

    @property
    def unmerged(self) -> int:
        """Batches per epoch in version 0.1.0, which merged none."""
        return -(-len(self.labels) // (self.batch_size * self.process.world_size))

    @property
    def repeats(self) -> bool:
        """Whether all epochs are the same."""
        return not self.shuffle and self.policy == Policy()

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Draw]:
        """The batches of one epoch, from batch `first` on."""
        return self._cut(self._draw(epoch), first)

    def onwards(self, epoch: int, first: int = 0) -> Iterator[Draw]:
        """The batches of an epoch, from batch `first` on, and then those of all epochs after it.

        A thread draws the next epoch while this one is read, and begins when a feed has delivered its first batch.
        """
        drawn = self._draw(epoch)
        for following in count(epoch + 1):
            ahead = None
            for number, draw in enumerate(self._cut(drawn, first)):
                if number == READ_AHEAD:
                    ahead = _in_thread(self._draw, following)
                yield draw
            drawn, first = ahead.result() if ahead else self._draw(following), 0

    def _draw(self, epoch: int) -> Draw:
        """A whole epoch, of all processes."""
        generator = np.random.default_rng([self.seed, epoch])
        images = len(self.labels)
        if self.shuffle:
            order = epoch_order(self.labels, self.balanced, self.seed, epoch, generator)
        else:
            order = np.arange(images)
        drawn = draw_views(self.policy, self.packed_size, self.image_size, self.views * images, generator)
        return Draw(order, drawn)

    def _cut(self, drawn: Draw, first: int) -> Iterator[Draw]:
        """The batches of a whole epoch, from batch `first` on."""
        filled = ((start, stop) for start, stop in self._spans() if stop > start)
        for start, stop in islice(filled, first, None):
            rows = drawn.rows[start:stop]
            if self.views == 1:
                yield Draw(rows, drawn.views[start:stop])
                continue
            places = np.arange(start, stop) + len(drawn.rows) * np.arange(self.views)[:, None]
            yield Draw(np.tile(rows, self.views), drawn.views[places.ravel()])

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Start and stop of this process's part of each batch; the parts of a batch differ by at most one image."""
        rank, world_size = self.process.rank, self.process.world_size
        for start, stop in pairwise(self._bounds()):
            images = stop - start
            yield start + images * rank // world_size, start + images * (rank + 1) // world_size

    def _bounds(self) -> list[int]:
        """Bounds of the batches of all processes together."""
        images, processes = len(self.labels), self.process.world_size
        if self.views > 1:
            images -= images % processes
        whole, least = self.batch_size * processes, FEWEST * processes
        bounds = [*range(0, images, whole), images]
        if self.shuffle and len(bounds) > 2 and bounds[-1] - bounds[-2] < least:
            middle = (bounds[-3] + bounds[-1]) // 2
            if self.views > 1:
                middle -= middle % processes
            bounds[-2:-1] = [middle] if middle - bounds[-3] >= least else []
        return bounds


def _in_thread(work: Callable[[int], Draw], epoch: int) -> Future[Draw]:
    """Begin `work` in a thread of its own, which ends with it, whether or not anybody asks for the result."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="draws")
    future = pool.submit(work, epoch)
    pool.shutdown(wait=False)
    return future
