"""The sources of the graph's images: functions from rows of a split to one batch of the graph's first input."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from hemafast.data.graph import GraphShape
from hemafast.data.sampling import Rows
from hemafast.errors import HemafastError
from hemafast.mapped import RESTORE, map_file
from hemafast.preparation.images.image_checks import Pixels
from hemafast.preparation.reader import read_image, refuse_other_image

if TYPE_CHECKING:
    import torch

    from hemafast.data.samples import Samples


class Images(Protocol):
    """Images of a split, by their places in it."""

    def __call__(self, rows: Rows) -> Any:
        """One batch of the graph's first input. Raises HemafastError for an image that has changed."""

    def examine(self, rows: Rows) -> None:
        """Raise HemafastError for the one of these images that DALI failed on."""


Status = tuple[int, int, int]
"""Device, number and time of the last change of a file."""

_COPIED_AT_ONCE = 256  # squares: 50 MB at 256 px


def open_source(samples: Samples, shape: GraphShape) -> Images:
    """The images of `samples` from `shape.source`. Raises HemafastError if the data set lacks them."""
    if shape.source == "resident":
        return Resident(samples, "cuda" if shape.device == "gpu" else "cpu")
    if shape.source == "packed":
        return Mapped(samples)
    encoded: dict[str, Callable[[Samples, int], Images]] = {"files": Files, "webdataset": TarMembers}
    return encoded[shape.source](samples, shape.threads)


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
    """Names of files, which DALI reads in its own threads once they were found to be what was prepared.

    A file is hashed before it is read for the first time, and again if its status says that it was written to since:
    DALI may crash on bytes that `prepare` has not seen.
    """

    def __init__(self, samples: Samples, threads: int) -> None:
        self._samples, self._threads = samples, threads
        self._names = [np.frombuffer(os.fsencode(path), dtype=np.uint8) for path in samples.paths]
        self._hashed: list[Status | None] = [None] * len(samples)
        for row in range(len(samples)):
            self._status(row)

    def __call__(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The names of the files of `rows`."""
        self._hash([row for row in dict.fromkeys(rows.tolist()) if self._status(row) != self._hashed[row]])
        return [self._names[row] for row in rows]

    def examine(self, rows: Rows) -> None:
        """Hash these files again."""
        self._hash(rows.tolist())

    def _hash(self, rows: Sequence[int]) -> None:
        def examine(row: int) -> None:
            before = self._status(row)
            read_image(Path(self._samples.paths[row]), self._samples.sha256[row].decode())
            self._hashed[row] = before

        in_threads(examine, rows, self._threads)

    def _status(self, row: int) -> Status:
        """What changes when a file is replaced or written to. Raises HemafastError if it is gone or of another size."""
        path = self._samples.paths[row]
        try:
            found = os.stat(path)  # noqa: PTH116 - in each epoch for each file; a Path costs as much again
        except OSError as error:
            raise HemafastError(f"{path} cannot be read ({error.strerror}).", RESTORE) from error
        if found.st_size != self._samples.sizes[row]:
            raise HemafastError(f"{path} is not the file that was prepared.", RESTORE)
        return found.st_dev, found.st_ino, found.st_ctime_ns


class TarMembers:
    """Encoded bytes in memory-mapped tars. Each image is hashed when it is first read."""

    def __init__(self, samples: Samples, threads: int) -> None:
        self._samples, self._threads = samples, threads
        self._members = samples.members()
        self._tars = {path: map_file(Path(path)) for path in dict.fromkeys(self._members.paths)}
        self._unread = np.ones(len(samples), dtype=bool)

    def __call__(self, rows: Rows) -> list[npt.NDArray[np.uint8]]:
        """The bytes of `rows`."""
        self.examine(rows[self._unread[rows]])
        self._unread[rows] = False
        return [self._bytes(row) for row in rows]

    def examine(self, rows: Rows) -> None:
        """Hash these members again."""
        in_threads(self._refuse_changed, np.unique(rows), self._threads)

    def _refuse_changed(self, row: int) -> None:
        path, begin, size = self._members.place(row)
        wanted = self._samples.sha256[row].decode()
        refuse_other_image(f"{path}, bytes {begin} to {begin + size},", self._bytes(row).data, wanted)

    def _bytes(self, row: int) -> npt.NDArray[np.uint8]:
        path, begin, size = self._members.place(row)
        return self._tars[path][begin : begin + size]


def in_threads(work: Callable[[int], object], rows: Iterable[int], threads: int) -> None:
    """Call `work` for each of these rows, in threads that end with the call. Raises what `work` raises."""
    if rows := list(rows):
        with ThreadPoolExecutor(min(threads, len(rows))) as pool:
            list(pool.map(work, rows))
