"""Read a prepared data set back, and check that it is the whole of what its dataset.json describes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.pixels import packed_name
from hemafast.prepare.shards import digest, fingerprint
from hemafast.prepare.verify import Pixels

_REMEDY = "Run `hemafast prepare` again."


@dataclass(frozen=True, slots=True)
class PackedPixels:
    """Packed squares of one size, memory-mapped: a sequence of uint8 (size, size, 3)."""

    files: tuple[Pixels, ...]
    rows_per_file: int
    rows: npt.NDArray[np.int64]
    """Which of the squares in the files these are."""
    size: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | np.integer) -> Pixels:
        file, within = divmod(int(self.rows[index]), self.rows_per_file)
        square: Pixels = self.files[file][within]
        return square

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[np.generic]:
        squares = np.stack([self[index] for index in range(len(self))])
        return squares if dtype is None else squares.astype(dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of all squares."""
        return 3 * self.size**2 * len(self)

    def select(self, rows: npt.NDArray[np.int64]) -> PackedPixels:
        """Some of the squares, by their place in this sequence."""
        return PackedPixels(self.files, self.rows_per_file, self.rows[rows], self.size)


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """The files of a prepared data set."""

    info: schema.DatasetInfo
    manifest: pd.DataFrame
    packed: dict[int, PackedPixels]
    """By size; square i belongs to row i of the manifest."""


def read_prepared(folder: Path) -> PreparedFiles:
    """Open the prepared data set at `folder`.

    Raises HemafastError if there is none, if its manifest is not the one that its fingerprint was taken of, or if
    packed pixels are missing or cut.
    """
    info = read_info(folder)
    manifest = _read_manifest(folder, info)
    packed = {size: _open_packed(folder, info, len(manifest), size) for size in info.pack_sizes}
    return PreparedFiles(info, manifest, packed)


def read_info(folder: Path) -> schema.DatasetInfo:
    """What dataset.json says. Raises HemafastError if there is none, or if it is not as it was written."""
    path = folder / schema.INFO
    if not path.is_file():
        raise HemafastError(
            f"{folder} is not a prepared data set.", "Make it with `hemafast prepare`, or name one with --data."
        )
    try:
        info = schema.DatasetInfo.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise HemafastError(f"{path} was written by another version or is damaged.", _REMEDY) from error
    if info.schema_version != schema.SCHEMA:
        raise HemafastError(f"{path} has schema {info.schema_version}, not {schema.SCHEMA}.", _REMEDY)
    if info.seal != seal(info):
        raise HemafastError(f"{path} was changed after it was written.", _REMEDY)
    return info


def seal(info: schema.DatasetInfo) -> str:
    """sha256 over everything that dataset.json says but its seal."""
    return digest(info.model_dump(mode="json", exclude={"seal"}))


def packed_files(info: schema.DatasetInfo, images: int, size: int) -> Sequence[tuple[str, int]]:
    """Name and number of squares of each file that holds the squares of one size."""
    whole = info.rows_per_file[str(size)]
    return [
        (packed_name(size, index), min(whole, images - start)) for index, start in enumerate(range(0, images, whole))
    ]


def _read_manifest(folder: Path, info: schema.DatasetInfo) -> pd.DataFrame:
    path = folder / schema.MANIFEST
    try:
        manifest = pd.read_parquet(path)
        found = fingerprint(manifest, info.classes, info.pack_sizes)
    except (OSError, ValueError, KeyError) as error:
        raise HemafastError(f"{path} cannot be read: {error}.", _REMEDY) from error
    if found != info.fingerprint:
        raise HemafastError(f"{path} does not match the fingerprint in {schema.INFO}.", _REMEDY)
    return manifest


def _open_packed(folder: Path, info: schema.DatasetInfo, images: int, size: int) -> PackedPixels:
    files = tuple(
        _open_squares(folder / schema.PACKED / name, rows, size) for name, rows in packed_files(info, images, size)
    )
    return PackedPixels(files, info.rows_per_file[str(size)], np.arange(images), size)


def _open_squares(path: Path, rows: int, size: int) -> Pixels:
    try:
        squares: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise HemafastError(f"{path} cannot be read: {error}.", _REMEDY) from error
    if squares.shape != (rows, size, size, 3) or squares.dtype != np.uint8:
        raise HemafastError(f"{path} holds {squares.shape} {squares.dtype}, not {rows} images of {size} px.", _REMEDY)
    return np.asarray(squares)  # the same map; indexing a plain array costs a third of indexing a np.memmap
