"""A batch before and after it has pixels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from hemafast.data.augment import Policy, Views
from hemafast.data.geometry import Boxes
from hemafast.data.graph import GraphShape
from hemafast.data.stream import Draw

if TYPE_CHECKING:
    import torch

    from hemafast.data.samples import Samples


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the device."""

    images: torch.Tensor
    """uint8 (n, 3, image_size, image_size) in channels_last."""
    labels: torch.Tensor
    """int64 (n,)."""
    rows: torch.Tensor
    """int64 (n,) on the host: places of the images in the split."""


_BORDER = 5
"""Pixels around a window: scaling reaches 2 px beyond half a step, and JPEG decoders interpolate colours anew where a
part ends."""


class Placed(NamedTuple):
    """One batch without pixels, on the host: what a feed needs to know of it."""

    rows: npt.NDArray[np.int64]
    """(n,): places of the images in the split."""
    labels: npt.NDArray[np.int64]
    """(n,): memory of this batch alone."""
    views: dict[str, npt.NDArray[Any]]
    """The contiguous arrays named by `GraphShape.inputs`: fields of `augment.Views`, with windows in pixels of what
    the source yields. Without "window" among them, nothing is scaled, and "turn" also cuts the window out. With "part"
    (n, 4), int32, the source yields that part of each image."""


class Feed(Protocol):
    """Makes one batch after the other."""

    def next(self) -> Batch:
        """The next batch. Its tensors stay as they are for as long as they are kept."""


def place(draws: Iterable[Draw], samples: Samples, shape: GraphShape, policy: Policy) -> Iterator[Placed]:
    """The same batches, with labels, and views in pixels of what the source yields."""
    names = shape.inputs(policy)
    for rows, views in draws:
        placed = {name: getattr(views, name) for name in names if name != "part"}
        if "window" not in placed:
            placed["turn"] = _with_the_window(views)
        elif shape.encoded:
            placed["window"] = _in_files(views.window, samples, rows)
        if "part" in names:
            part = placed["part"] = _part_around(placed["window"], samples.edges[rows], shape.image_size)
            placed["window"] -= np.tile(part[:, :2], 2)
        yield Placed(rows, samples.labels[rows], {name: placed[name] for name in names})


def _with_the_window(views: Views) -> npt.NDArray[np.float32]:
    """Turns that also cut the window out: their shift includes its corner."""
    turn = views.turn.copy()
    turn[:, :, 2] += views.window[:, 1::-1]  # (top, left) to (x, y)
    return turn


def _in_files(window: Boxes, samples: Samples, rows: npt.NDArray[np.int64]) -> Boxes:
    """Windows in pixels of the files, of which the packed squares show a part, scaled."""
    kept = samples.windows[rows]
    scale = (kept[:, 2:] - kept[:, :2]) / samples.packed_size
    return np.tile(kept[:, :2], 2) + window * np.tile(scale, 2)


def _part_around(window: Boxes, edges: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int32]:
    """(n, 4): the pixels that make up each window scaled to `size`, of files with `edges` (height, width)."""
    margin = (window[:, 2:] - window[:, :2]) / (2 * size) + _BORDER
    start = np.clip(np.floor(window[:, :2] - margin), 0, edges - 1)
    end = np.clip(np.ceil(window[:, 2:] + margin), start + 1, edges)
    return np.concatenate([start, end], axis=1).astype(np.int32)
