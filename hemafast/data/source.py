"""The sources of the graph's images: functions from rows of a split to one batch of the graph's first input."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hemafast.data.graph import GraphShape
from hemafast.data.sampling import Rows
from hemafast.errors import HemafastError

if TYPE_CHECKING:
    import torch

    from hemafast.data.samples import Samples

Images = Callable[[Rows], Any]

_REMEDY = "Run `hemafast prepare` again."
_COPIED_AT_ONCE = 256  # squares: 50 MB at 256 px


def open_source(samples: Samples, shape: GraphShape) -> Images:
    """The images of `samples` from `shape.source`. Raises HemafastError if the data set lacks them."""
    if shape.source == "resident":
        return Resident(samples, "cuda" if shape.device == "gpu" else "cpu")
    return {"packed": _mapped, "files": _paths, "webdataset": _members}[shape.source](samples)


def _mapped(samples: Samples) -> Images:
    """Squares of the memory map, without a copy before DALI reads them."""
    return samples.packed.several


class Resident:
    """Squares in the memory of the device; one gather makes a batch."""

    def __init__(self, samples: Samples, device: str) -> None:
        self.squares = copy_squares(samples, device)
        """uint8 (images, size, size, 3), in the order of the split."""

    def __call__(self, rows: Rows) -> Any:
        """The squares of `rows`: a tensor on a GPU, an array on a CPU."""
        import torch

        device = self.squares.device
        batch = self.squares[torch.from_numpy(rows).to(device, non_blocking=True)]
        return batch if device.type == "cuda" else batch.numpy()


def copy_squares(samples: Samples, device: str) -> torch.Tensor:
    """All packed squares of `samples` on `device`: uint8 (images, size, size, 3), in the order of its rows."""
    import torch

    size, images = samples.packed_size, len(samples)
    squares = torch.empty((images, size, size, 3), dtype=torch.uint8, device=device)
    for start in range(0, images, _COPIED_AT_ONCE):
        rows = range(start, min(start + _COPIED_AT_ONCE, images))
        squares[rows.start : rows.stop] = torch.from_numpy(np.stack([samples.packed[row] for row in rows]))
    return squares


def _paths(samples: Samples) -> Images:
    """Names of files, each checked for its size. DALI reads them in its own threads."""
    for path, size in zip(samples.paths, samples.sizes, strict=True):
        try:
            changed = Path(path).stat().st_size != size
        except OSError as error:
            raise HemafastError(f"{path} cannot be read ({error.strerror}).", _REMEDY) from error
        if changed:
            raise HemafastError(f"{path} is not the file that was prepared.", _REMEDY)
    paths = [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in samples.paths]
    return lambda rows: [paths[row] for row in rows]


def _members(samples: Samples) -> Images:
    """Encoded bytes in memory-mapped tars."""
    members = samples.members()
    tars: dict[str, Any] = {}
    for path in dict.fromkeys(members.paths):
        with Path(path).open("rb") as file:
            tars[path] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def read(rows: Rows) -> list[Any]:
        return [
            tars[members.paths[row]][members.offsets[row] : members.offsets[row] + members.sizes[row]] for row in rows
        ]

    return read
