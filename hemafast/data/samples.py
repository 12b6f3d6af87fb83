"""The images of one split, as loaders take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError
from hemafast.preparation.pixels import Windows, hash_squares
from hemafast.preparation.reader import PackedPixels
from hemafast.preparation.schema import PREPARE_AGAIN
from hemafast.preparation.webdataset import Members


@dataclass(frozen=True, slots=True)
class Samples:
    """The images of one split, in shard order."""

    paths: tuple[str, ...]
    """Files of encoded bytes, absolute."""
    labels: npt.NDArray[np.int64]
    """Index of each image's class."""
    domains: npt.NDArray[np.str_]
    """Name of each image's domain."""
    edges: npt.NDArray[np.int64]
    """(images, 2): height and width of each file, in pixels."""
    windows: Windows
    """(images, 4): the part of each file that the packed square shows."""
    packed: PackedPixels
    """One square uint8 (size, size, 3) per image, memory-mapped."""
    hashes: tuple[str, ...]
    """Of each image, over its packed squares of all sizes (`hash_squares`)."""
    hashed: tuple[PackedPixels, ...]
    """The packed squares of all sizes."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each encoded file."""
    sha256: tuple[str, ...]
    """Of each encoded file."""
    split: str
    """ "train", "val" or "test"; of a fold: "fold0-train"."""
    fingerprint: str
    """Fingerprint of the data set."""
    members: Callable[[], Members]
    """Places of the encoded bytes in the tars of the data set. Raises HemafastError if it has none."""

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: npt.NDArray[np.int64]) -> Samples:
        """Some of these images, by position."""
        return replace(
            self,
            paths=tuple(self.paths[row] for row in rows),
            packed=self.packed.select(rows),
            hashes=tuple(self.hashes[row] for row in rows),
            sha256=tuple(self.sha256[row] for row in rows),
            hashed=tuple(packed.select(rows) for packed in self.hashed),
            members=lambda: self.members().select(rows),
            **{name: getattr(self, name)[rows] for name in ("labels", "domains", "edges", "windows", "sizes")},
        )

    def refuse_changed(self, row: int) -> None:
        """Raise HemafastError if the packed squares of an image are not those that were prepared."""
        if hash_squares(packed[row] for packed in self.hashed) != self.hashes[row]:
            where = " or ".join(packed.place_of(row) for packed in self.hashed)
            raise HemafastError(
                f"{where} was overwritten: it is not the picture of {self.paths[row]} that was prepared.", PREPARE_AGAIN
            )

    @property
    def packed_size(self) -> int:
        """Side of the packed squares in pixels."""
        return self.packed.size
