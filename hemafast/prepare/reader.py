"""Read a prepared data set back, and check that it is the whole of what its dataset.json describes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import ValidationError

from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.pixels import Pixels
from hemafast.prepare.shards import fingerprint
from hemafast.prepare.split import SPLITS

_REMEDY = "Run `hemafast prepare` again."


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """The files of a prepared data set."""

    info: schema.DatasetInfo
    manifest: pd.DataFrame
    packed: dict[str, Pixels]
    """By split: uint8 (images, size, size, 3), memory-mapped, rows in manifest order."""


def read_prepared(folder: Path) -> PreparedFiles:
    """Open the prepared data set at `folder`.

    Raises HemafastError if there is none, if its manifest is not the one that its fingerprint was taken of, or if
    packed pixels are missing or cut.
    """
    info = _read_info(folder)
    manifest = _read_manifest(folder, info)
    packed = {split: _open_packed(folder, info, manifest, split) for split in SPLITS}
    return PreparedFiles(info, manifest, packed)


def _read_info(folder: Path) -> schema.DatasetInfo:
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
    return info


def _read_manifest(folder: Path, info: schema.DatasetInfo) -> pd.DataFrame:
    path = folder / schema.MANIFEST
    try:
        manifest = pd.read_parquet(path)
        found = fingerprint(manifest, info.classes, info.settings.packed_size)
    except (OSError, ValueError, KeyError) as error:
        raise HemafastError(f"{path} cannot be read: {error}.", _REMEDY) from error
    if found != info.fingerprint:
        raise HemafastError(f"{path} does not match the fingerprint in {schema.INFO}.", _REMEDY)
    return manifest


def _open_packed(folder: Path, info: schema.DatasetInfo, manifest: pd.DataFrame, split: str) -> Pixels:
    size, images = info.settings.packed_size, len(schema.in_split(manifest, split))
    path = folder / schema.packed_file(split, size)
    try:
        packed: Pixels = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise HemafastError(f"{path} cannot be read: {error}.", _REMEDY) from error
    if packed.shape != (images, size, size, 3) or packed.dtype != np.uint8:
        raise HemafastError(f"{path} holds {packed.shape} {packed.dtype}, not {images} images of {size} px.", _REMEDY)
    return packed
