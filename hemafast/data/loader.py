"""Epochs of batches on the device: uint8 images that torch sees as channels_last."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from hemafast.data.augment import POLICIES, warp_matrices
from hemafast.data.dataset import Samples
from hemafast.data.graph import GraphShape, build_graph
from hemafast.data.stream import BatchStream

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the device."""

    images: torch.Tensor
    """uint8 (n, 3, image_size, image_size) in channels_last."""
    labels: torch.Tensor
    """int64 (n,)."""
    rows: torch.Tensor
    """int64 (n,) on the host: which images of the split these are."""


class Loader:
    """Batches of one split. Each epoch holds every image exactly once and can be asked for by its number."""

    def __init__(self, samples: Samples, stream: BatchStream, shape: GraphShape) -> None:
        self._samples, self._stream, self._shape = samples, stream, shape
        self._pipeline: Any = None  # stands at the start of the next epoch
        self._next_epoch = 0

    def __len__(self) -> int:
        return len(self._stream)

    @property
    def images(self) -> int:
        """Images an epoch."""
        return len(self._samples)

    @property
    def packed_bytes(self) -> int:
        """Size of the packed pixels of the split."""
        return self._samples.packed.nbytes

    def epoch(self, epoch: int | None = None) -> Iterator[Batch]:
        """The batches of epoch `epoch`, or of the next one. Epochs asked for in turn follow without a pause."""
        epoch = self._next_epoch if epoch is None else epoch
        pipeline = self._pipeline if epoch == self._next_epoch else None
        if pipeline is None:
            pipeline = build_graph(self._feed(epoch), self._shape)
        self._next_epoch = epoch + 1
        self._pipeline = None  # until this epoch is through, the pipeline stands in its midst
        for _ in range(len(self)):
            yield self._to_batch(*pipeline.run())
        self._pipeline = pipeline

    def _feed(self, start: int) -> Iterator[tuple[Any, ...]]:
        shape = self._shape
        for epoch in count(start):
            for rows, views in self._stream.epoch(epoch):
                matrices = warp_matrices(views, shape.packed_size, shape.image_size)
                corners = (views.corner,) if shape.scaled else ()
                kept = () if shape.packed else (self._samples.windows[rows],)
                yield self._pixels(rows), matrices, self._samples.labels[rows], rows, *corners, *kept

    def _pixels(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> list[Any]:
        if self._shape.packed:
            return [self._samples.packed[row] for row in rows]
        return [np.frombuffer(self._samples.paths[row].encode(), dtype=np.uint8) for row in rows]

    def _to_batch(self, images: Any, labels: Any, rows: Any) -> Batch:
        from torch.utils.dlpack import from_dlpack

        # The outputs own their memory (DALI's dynamic executor), so the tensors stay valid for as long as they live.
        nhwc = from_dlpack(images.as_tensor())
        return Batch(
            images=nhwc.permute(0, 3, 1, 2),
            labels=from_dlpack(labels.as_tensor()).to(nhwc.device, non_blocking=True),
            rows=from_dlpack(rows.as_tensor()),
        )


def train_loader(samples: Samples, *, policy: str, seed: int, shape: GraphShape) -> Loader:
    """Shuffled batches of the training split under the named policy."""
    return _loader(samples, policy=policy, shuffle=True, seed=seed, shape=shape)


def eval_loader(samples: Samples, *, shape: GraphShape) -> Loader:
    """Batches in shard order without any randomness; there is no way to ask for augmentation here."""
    return _loader(samples, policy="none", shuffle=False, seed=0, shape=shape)


def _loader(samples: Samples, *, policy: str, shuffle: bool, seed: int, shape: GraphShape) -> Loader:
    stream = BatchStream(
        images=len(samples),
        batch_size=shape.batch_size,
        packed_size=shape.packed_size,
        policy=POLICIES[policy],
        shuffle=shuffle,
        seed=seed,
    )
    return Loader(samples, stream, shape)
