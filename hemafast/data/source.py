"""Where the graph's images come from: for rows of a split, what DALI is to read.

Each source is a function from rows to one batch of the graph's first input.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hemafast.data.dataset import Samples
from hemafast.data.graph import GraphShape

if TYPE_CHECKING:
    import torch

Rows = npt.NDArray[np.int64]
Images = Callable[[Rows], Any]

_COPIED_AT_ONCE = 256  # squares: 50 MB at 256 px


def open_source(samples: Samples, shape: GraphShape) -> Images:
    """The images of `samples` as `shape.source` has them. Raises HemafastError if they are not there in that form."""
    makers: dict[str, Callable[[], Images]] = {
        "packed": lambda: _mapped(samples),
        "resident": lambda: _resident(samples, "cuda" if shape.device == "gpu" else "cpu"),
        "files": lambda: _paths(samples),
        "webdataset": lambda: _members(samples),
    }
    return makers[shape.source]()


def _mapped(samples: Samples) -> Images:
    """Squares of the memory map; nothing is copied before DALI reads them."""
    packed = samples.packed
    return lambda rows: [packed[row] for row in rows]


def _resident(samples: Samples, device: str) -> Images:
    """Squares that lie on the device; one gather makes a batch of them."""
    import torch

    squares = copy_squares(samples, device)

    def gather(rows: Rows) -> Any:
        batch = squares[torch.from_numpy(rows).to(device, non_blocking=True)]
        return batch if device == "cuda" else batch.numpy()

    return gather


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
    """Names of files; DALI reads them in its own threads."""
    paths = [np.frombuffer(path.encode(), dtype=np.uint8) for path in samples.paths]
    return lambda rows: [paths[row] for row in rows]


def _members(samples: Samples) -> Images:
    """Encoded bytes within memory-mapped tars."""
    members = samples.members()
    tars: dict[str, Any] = {}
    for path in dict.fromkeys(members.paths):
        with open(path, "rb") as file:  # noqa: PTH123 - mmap wants a file descriptor
            tars[path] = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)

    def read(rows: Rows) -> list[Any]:
        return [
            tars[members.paths[row]][members.offsets[row] : members.offsets[row] + members.sizes[row]] for row in rows
        ]

    return read
