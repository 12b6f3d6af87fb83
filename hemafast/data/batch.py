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


class Placed(NamedTuple):
    """One batch without pixels, on the host: what a feed needs to know of it."""

    rows: npt.NDArray[np.int64]
    """(n,): places of the images in the split."""
    labels: npt.NDArray[np.int64]
    """(n,): memory of this batch alone."""
    views: dict[str, npt.NDArray[Any]]
    """The contiguous arrays named by `GraphShape.inputs`: fields of `augment.Views`, with windows in pixels of what
    the source yields. Without "window" among them, nothing is scaled, and "turn" also cuts the window out."""


class Feed(Protocol):
    """Makes one batch after the other."""

    def next(self) -> Batch:
        """The next batch. Its tensors stay as they are for as long as they are kept."""


def place(draws: Iterable[Draw], samples: Samples, shape: GraphShape, policy: Policy) -> Iterator[Placed]:
    """The same batches, with labels, and views in pixels of what the source yields."""
    names = shape.inputs(policy)
    for rows, views in draws:
        placed = {name: getattr(views, name) for name in names}
        if "window" not in placed:
            placed["turn"] = _with_the_window(views)
        elif shape.encoded:
            placed["window"] = _in_files(views.window, samples, rows)
        yield Placed(rows, samples.labels[rows], placed)


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
