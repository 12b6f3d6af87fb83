"""The images of one split, as loaders take them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation.pixels import Windows, hash_squares
from hemafast.preparation.reader import PackedPixels
from hemafast.preparation.schema import PREPARE_AGAIN
from hemafast.preparation.webdataset import Members

_BY_ROW = ("labels", "domains", "edges", "windows", "hashes", "sizes", "sha256")
"""Fields of `Samples` that are arrays with a row for each image."""


class Files(Sequence[str]):
    """Absolute names of files in one folder, made when they are asked for: a million of them would take 150 MB."""

    def __init__(self, folder: Path, paths: pd.Series[str]) -> None:
        self._folder, self._paths = str(folder.absolute()), paths.array

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(f"{self._folder}/{path}" for path in self._paths[index])
        return f"{self._folder}/{self._paths[index]}"

    def select(self, rows: npt.NDArray[np.int64]) -> Files:
        """Some of these files, by position."""
        some = copy(self)
        some._paths = self._paths.take(rows)
        return some


def fixed_texts(column: pd.Series[str]) -> npt.NDArray[np.bytes_]:
    """A column of texts of one length as bytes, (n,), without an object for each."""
    import pyarrow as pa

    if column.empty:
        return np.empty(0, np.bytes_)
    length = len(column.iloc[0])
    texts = pa.array(column).cast(pa.large_binary()).cast(pa.binary(length))
    whole = texts.combine_chunks() if isinstance(texts, pa.ChunkedArray) else texts
    return np.frombuffer(whole.buffers()[1], f"S{length}")[whole.offset :][: len(column)]


@dataclass(frozen=True, slots=True)
class Samples:
    """The images of one split, in shard order."""

    paths: Sequence[str]
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
    hashes: npt.NDArray[np.bytes_]
    """Of each image, over its packed squares of all sizes (`hash_squares`), hexadecimal."""
    hashed: tuple[PackedPixels, ...]
    """The packed squares of all sizes."""
    sizes: npt.NDArray[np.int64]
    """Bytes of each encoded file."""
    sha256: npt.NDArray[np.bytes_]
    """Of each encoded file, hexadecimal."""
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
            paths=self.paths.select(rows) if isinstance(self.paths, Files) else tuple(self.paths[row] for row in rows),
            packed=self.packed.select(rows),
            hashed=tuple(packed.select(rows) for packed in self.hashed),
            members=lambda: self.members().select(rows),
            **{name: getattr(self, name)[rows] for name in _BY_ROW},
        )

    def refuse_changed(self, row: int) -> None:
        """Raise HemafastError if the packed squares of an image are not those that were prepared."""
        if hash_squares(packed[row] for packed in self.hashed) != self.hashes[row].decode():
            where = " or ".join(packed.place_of(row) for packed in self.hashed)
            raise HemafastError(
                f"{where} was overwritten: it is not the picture of {self.paths[row]} that was prepared.", PREPARE_AGAIN
            )

    @property
    def packed_size(self) -> int:
        """Side of the packed squares in pixels."""
        return self.packed.size
