"""Which images make up each batch and how each is seen: a pure function of seed, epoch and position."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hemafast.data.augment import Policy, Views, draw_views


class Draw(NamedTuple):
    """One batch before it has pixels: rows of the split, and how each is seen."""

    rows: npt.NDArray[np.int64]
    views: Views


@dataclass(frozen=True, slots=True)
class BatchStream:
    """Every image of a split once an epoch, in batches of `batch_size` and a shorter last one."""

    images: int
    batch_size: int
    packed_size: int
    policy: Policy
    shuffle: bool
    seed: int

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def epoch(self, epoch: int) -> Iterator[Draw]:
        """The batches of one epoch. The order is a true permutation, drawn anew for each epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        order = generator.permutation(self.images) if self.shuffle else np.arange(self.images)
        views = draw_views(self.policy, self.packed_size, self.images, generator)
        bounds = self._bounds()
        for start, stop in pairwise(bounds):
            yield Draw(order[start:stop], views[start:stop])

    def _bounds(self) -> list[int]:
        bounds = [*range(0, self.images, self.batch_size), self.images]
        if self.shuffle and len(bounds) > 2 and bounds[-1] - bounds[-2] == 1:
            # Batch norm cannot learn from a lone image: it shares the batch before it evenly.
            bounds[-2] = (bounds[-3] + bounds[-1]) // 2
        return bounds
