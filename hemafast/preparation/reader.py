"""Open a prepared data set, and check that its files are those that dataset.json describes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.mapped import RESTORE, map_file
from hemafast.preparation import schema
from hemafast.preparation.images.image_checks import Pixels
from hemafast.preparation.manifest import read_columns
from hemafast.preparation.pixels import packed_header, packed_name
from hemafast.preparation.shards import digest
from hemafast.reading import cause, read_json_text
from hemafast.regular import open_regular, read_regular, refuse_special
from hemafast.words import counted


@dataclass(frozen=True, slots=True)
class PackedPixels:
    """Packed squares of one size, memory-mapped: a sequence of uint8 (size, size, 3)."""

    files: tuple[Pixels, ...]
    rows_per_file: int
    rows: npt.NDArray[np.int64]
    """(n,): numbers of the squares in `files`."""
    size: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | np.integer) -> Pixels:
        file, within = divmod(int(self.rows[index]), self.rows_per_file)
        square: Pixels = self.files[file][within]
        return square

    def several(self, rows: npt.NDArray[np.int64]) -> list[Pixels]:
        """The squares at the positions `rows`."""
        files, within = np.divmod(self.rows[rows], self.rows_per_file)
        return [self.files[file][row] for file, row in zip(files.tolist(), within.tolist(), strict=True)]

    def place_of(self, index: int) -> str:
        """File and row of a square, in words."""
        file, within = divmod(int(self.rows[index]), self.rows_per_file)
        return f"row {within} of {packed_name(self.size, file)}"

    @property
    def nbytes(self) -> int:
        """Bytes of all squares."""
        return 3 * self.size**2 * len(self)

    def select(self, rows: npt.NDArray[np.int64]) -> PackedPixels:
        """Some of these squares, by position."""
        return PackedPixels(self.files, self.rows_per_file, self.rows[rows], self.size)


@dataclass(frozen=True)
class PreparedFiles:
    """The files of a prepared data set."""

    folder: Path
    info: schema.DatasetInfo
    images: pd.DataFrame
    """One row per image, with the columns `schema.OPENED`, which training needs."""
    packed: dict[int, PackedPixels]
    """By size; square i belongs to row i of the manifest."""

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """All columns, read when they are first asked for. Raises HemafastError if the manifest has changed."""
        return self.columns(*schema.MANIFEST_COLUMNS)

    def columns(self, *names: str) -> pd.DataFrame:
        """Columns of the manifest, one row per image. Raises HemafastError if the manifest has changed."""
        return read_manifest(self.folder, self.info, names)


def read_prepared(folder: Path) -> PreparedFiles:
    """Open a prepared data set.

    Raises HemafastError if `folder` is not one, if its manifest has changed, or if packed pixels are missing or cut.
    """
    info = read_info(folder)
    images = read_manifest(folder, info, schema.OPENED)
    packed = {size: open_packed(folder, info, len(images), size) for size in info.pack_sizes}
    return PreparedFiles(folder, info, images, packed)


def read_info(folder: Path) -> schema.DatasetInfo:
    """Read dataset.json. Raises HemafastError if it is missing or has changed."""
    path = folder / schema.INFO
    if not path.is_file():
        remedy = "Make one with `hemafast prepare`, or name another with --data."
        raise HemafastError(f"{folder} is not a prepared data set.", remedy)
    try:
        content = read_json_text(path)
        version = schema.Version.model_validate_json(content).schema_version
        if version != schema.SCHEMA:
            remedy = f"{schema.PREPARE_AGAIN} Runs continue on it if images and split are the same."
            raise HemafastError(f"{path} has format {version}; this hemafast reads format {schema.SCHEMA}.", remedy)
        info = schema.DatasetInfo.model_validate_json(content)
    except (OSError, ValueError) as error:
        raise HemafastError(f"{path} cannot be read or is damaged ({cause(error)}).", schema.PREPARE_AGAIN) from error
    if info.seal != seal(info):
        raise HemafastError(f"{path} was changed after it was written.", schema.PREPARE_AGAIN)
    return info


def seal(info: schema.DatasetInfo) -> str:
    """sha256 over all fields of dataset.json except the seal, and except those that its version did not have."""
    return digest(info.model_dump(mode="json", exclude={"seal"}, exclude_unset=True))


def packed_files(info: schema.DatasetInfo, images: int, size: int) -> Sequence[tuple[str, int]]:
    """Name and number of squares of each file of packed squares of one size."""
    most = info.rows_per_file[str(size)]
    return [(packed_name(size, index), min(most, images - start)) for index, start in enumerate(range(0, images, most))]


def read_manifest(
    folder: Path, info: schema.DatasetInfo, names: Sequence[str] = tuple(schema.MANIFEST_COLUMNS)
) -> pd.DataFrame:
    """Columns of the manifest, one row per image.

    Raises HemafastError if it is missing, has changed or cannot be right.
    """
    path = folder / schema.MANIFEST
    try:
        refuse_special(path)
    except OSError as error:
        raise HemafastError(f"{path} cannot be read ({error.strerror}).", schema.PREPARE_AGAIN) from error
    return read_columns(path, info.files[schema.MANIFEST], info, names)


def open_packed(folder: Path, info: schema.DatasetInfo, images: int, size: int) -> PackedPixels:
    """Open the squares of one size. Raises HemafastError if one of their files is missing or damaged."""
    parts = packed_files(info, images, size)
    files = tuple(open_squares(folder / schema.PACKED / name, rows, size) for name, rows in parts)
    return PackedPixels(files, info.rows_per_file[str(size)], np.arange(images), size)


def read_image(path: Path, sha256: str) -> bytes:
    """The encoded bytes of an image of a prepared data set.

    Args:
        path: its file.
        sha256: what the manifest says of that file, in hexadecimal digits.

    Raises:
        HemafastError: the file is gone, or is not the one that was prepared.
    """
    try:
        data = read_regular(path)
    except OSError as error:
        raise HemafastError(f"{path} cannot be read ({error.strerror}).", RESTORE) from error
    refuse_other_image(str(path), data, sha256)
    return data


def refuse_other_image(where: str, data: bytes | memoryview, sha256: str) -> None:
    """Raise HemafastError unless these are the bytes that were prepared. Others could crash a decoder."""
    if hashlib.sha256(data).hexdigest() != sha256:
        raise HemafastError(f"{where} was overwritten: it is not the image that was prepared.", RESTORE)


def open_squares(path: Path, rows: int, size: int) -> Pixels:
    """Map one file of squares into memory: uint8 (rows, size, size, 3).

    Raises HemafastError if the file is missing, or if its header or length is wrong. The header is compared, not
    parsed: only one is right.
    """
    header, shape = packed_header(rows, size), (rows, size, size, 3)
    try:
        with open_regular(path) as file:
            sound = file.read(len(header)) == header and path.stat().st_size == len(header) + math.prod(shape)
        if sound:
            return map_file(path, offset=len(header), shape=shape)
    except OSError as error:
        raise HemafastError(f"{path} cannot be read ({error.strerror}).", schema.PREPARE_AGAIN) from error
    raise HemafastError(
        f"{path} was cut or changed: it should hold {counted(rows, 'image')} of {size} px.", schema.PREPARE_AGAIN
    )
