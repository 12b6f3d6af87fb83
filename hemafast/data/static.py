"""Batches at fixed addresses, which CUDA graphs need: a graph replays the addresses that it was captured with.

Written for a GPU, and not yet run on one; the CPU holds the same promises.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import cycle
from typing import TYPE_CHECKING

from hemafast.data.loader import Batch

if TYPE_CHECKING:
    import torch

BUFFERS = 2
"""One that the device works on, one that is filled."""


def static_batches(batches: Iterable[Batch], batch_size: int) -> Iterator[Batch]:
    """The same batches in BUFFERS alternating places of memory, each valid until BUFFERS more have been asked for.

    A batch shorter than `batch_size` lies at the beginning of its place. The copies run on the current stream of the
    device, behind the work that still reads what they write over; the host waits for nothing. DALI's own outputs are
    double-buffered likewise (a queue of two, page-locked on the way to a GPU), but at addresses of its choice.
    """
    places: Iterator[tuple[torch.Tensor, torch.Tensor]] | None = None
    for batch in batches:
        if places is None:
            places = cycle([_place(batch, batch_size) for _ in range(BUFFERS)])
        images, labels = next(places)
        count = len(batch.labels)
        images[:count].copy_(batch.images, non_blocking=True)
        labels[:count].copy_(batch.labels, non_blocking=True)
        yield Batch(images[:count], labels[:count], batch.rows)


def _place(like: Batch, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Memory for images and labels of a full batch, on the device and in the layout of `like`."""
    import torch

    shape = (batch_size, *like.images.shape[1:])
    images = torch.empty(shape, dtype=like.images.dtype, device=like.images.device, memory_format=torch.channels_last)
    return images, torch.empty(batch_size, dtype=like.labels.dtype, device=like.labels.device)
