"""The sources of the graph's images: functions from rows of a split to one batch of the graph's first input."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hemafast.data.graph import GraphShape
from hemafast.data.sampling import Rows
from hemafast.errors import HemafastError
from hemafast.mapped import RESTORE, map_file
from hemafast.preparation.dali_apart import dali_apart
from hemafast.preparation.images.image_checks import Pixels, strict_decoders, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError

if TYPE_CHECKING:
    import torch

    from hemafast.data.samples import Samples


class Images(Protocol):
    """Images of a split, by their places in it."""

    def __call__(self, rows: Rows) -> Any:
        """One batch of the graph's first input. Raises HemafastError for an image that has changed."""

    def examine(self, rows: Rows) -> None:
        """Raise HemafastError for the one of these images that DALI failed on."""


_COPIED_AT_ONCE = 256  # squares: 50 MB at 256 px


def open_source(samples: Samples, shape: GraphShape) -> Images:
    """The images of `samples` from `shape.source`. Raises HemafastError if the data set lacks them."""
    if shape.source == "resident":
        return Resident(samples, "cuda" if shape.device == "gpu" else "cpu")
    kinds: dict[str, Callable[[Samples], Images]] = {"packed": Mapped, "files": Files, "webdataset": TarMembers}
    return kinds[shape.source](samples)


class Mapped:
    """Squares of the memory map, without a copy before DALI reads them. Each is hashed when it is first read."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self._unread = np.ones(len(samples), dtype=bool)

    def __call__(self, rows: Rows) -> list[Pixels]:
        """The squares of `rows`."""
        for row in np.unique(rows[self._unread[rows]]):
            self._samples.refuse_changed(row)
            self._unread[row] = False
        return self._samples.packed.several(rows)

    def examine(self, rows: Rows) -> None:
        """Hash these squares again."""
        for row in rows:
            self._samples.refuse_changed(row)


class Resident:
    """Squares in the memory of the device; one gather makes a batch."""

    def __init__(self, samples: Samples, device: str) -> None:
        self.squares = copy_squares(samples, device)
        """uint8 (images, size, size, 3), in the order of the split."""

    def examine(self, rows: Rows) -> None:
        """Nothing can be wrong with memory of this process."""

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
        for row in rows:
            samples.refuse_changed(row)
        squares[rows.start : rows.stop] = torch.from_numpy(np.stack([samples.packed[row] for row in rows]))
    return squares


class Files:
    """Names of files, each checked for its size. DALI reads them in its own threads."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        for row in range(len(samples)):
            self._refuse_other_size(row)
        self._names = [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in samples.paths]

    def __call__(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The names of the files of `rows`."""
        return [self._names[row] for row in rows]

    def examine(self, rows: Rows) -> None:
        """Look at the sizes of these files, and read them again."""
        for row in rows:
            self._refuse_other_size(row)
        for row in rows:
            path = self._samples.paths[row]
            refuse_unreadable(path, Path(path).read_bytes())

    def _refuse_other_size(self, row: int) -> None:
        path = self._samples.paths[row]
        try:
            changed = Path(path).stat().st_size != self._samples.sizes[row]
        except OSError as error:
            raise HemafastError(f"{path} cannot be read ({error.strerror}).", RESTORE) from error
        if changed:
            raise HemafastError(f"{path} is not the file that was prepared.", RESTORE)


class TarMembers:
    """Encoded bytes in memory-mapped tars."""

    def __init__(self, samples: Samples) -> None:
        self._members = samples.members()
        self._tars = {path: map_file(Path(path)) for path in dict.fromkeys(self._members.paths)}

    def __call__(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The bytes of `rows`."""
        return [self._tars[path][begin : begin + size] for path, begin, size in map(self._members.place, rows)]

    def examine(self, rows: Rows) -> None:
        """Read these members again."""
        for row, data in zip(rows, self(rows), strict=True):
            path, begin, size = self._members.place(row)
            refuse_unreadable(f"{path}, bytes {begin} to {begin + size},", data.tobytes())


def refuse_unreadable(name: str, data: bytes) -> None:
    """Raise HemafastError if the bytes are no longer an image that DALI reads, which is asked in another process."""
    try:
        with strict_decoders():
            verify_image(data, name, min_side=1)
        (reading,) = dali_apart(1).read([data])
    except UnreadableImageError:
        reading = None
    if reading is None:
        raise HemafastError(f"{name} was overwritten: it cannot be decoded any more.", RESTORE)
