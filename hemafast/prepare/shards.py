"""Write the files of a prepared data set: manifest, sharded file lists, packed pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.prepare.pixels import Pixels
from hemafast.prepare.schema import MANIFEST, MANIFEST_COLUMNS, PACKED, SHARDS, in_split, packed_file, shard_file
from hemafast.prepare.split import SPLITS

_COPY_ROWS = 256  # rows moved at a time while packing: 50 MB at 256 px


def shard_order(images: pd.DataFrame, seed: int) -> npt.NDArray[np.int64]:
    """Positions of all rows in the order of the manifest: training, validation, quarantined; each one well mixed.

    The order is a hash of the seed and the path, so it depends on neither the order of the input nor the platform.
    """
    rank = images["split"].map({split: index for index, split in enumerate(SPLITS)}).fillna(len(SPLITS))
    draw = images["path"].map(lambda path: hashlib.sha256(f"{seed}:{path}".encode()).hexdigest())
    order: npt.NDArray[np.int64] = np.lexsort((draw.to_numpy(dtype=str), rank.to_numpy(dtype=np.int64)))
    return order


def write_manifest(folder: Path, manifest: pd.DataFrame) -> None:
    """Write the manifest, its columns in the order of the schema."""
    manifest[list(MANIFEST_COLUMNS)].astype(MANIFEST_COLUMNS).to_parquet(folder / MANIFEST, index=False)


def write_shards(folder: Path, manifest: pd.DataFrame, classes: Sequence[str], count: int) -> None:
    """Cut each split into `count` file lists of `relative/path label`, in manifest order, of near equal length."""
    (folder / SHARDS).mkdir()
    for split in SPLITS:
        images = in_split(manifest, split)
        lines = [
            f"{path} {classes.index(label)}\n" for path, label in zip(images["path"], images["label"], strict=True)
        ]
        for index, part in enumerate(np.array_split(np.arange(len(lines)), count)):
            text = "".join(lines[row] for row in part)
            (folder / shard_file(split, index, count)).write_text(text, encoding="utf-8")


def write_packed(folder: Path, manifest: pd.DataFrame, pixels: Pixels, rows: npt.NDArray[np.int64], size: int) -> None:
    """Write the pixels of each split in manifest order.

    `pixels` is uint8 (images read, size, size, 3), `rows` the row in it of each manifest row. Memory stays flat.
    """
    (folder / PACKED).mkdir()
    for split in SPLITS:
        wanted = rows[in_split(manifest, split).index.to_numpy()]
        path = folder / packed_file(split, size)
        packed = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(wanted), size, size, 3))
        for start in range(0, len(wanted), _COPY_ROWS):
            packed[start : start + _COPY_ROWS] = pixels[wanted[start : start + _COPY_ROWS]]
        packed.flush()


def fingerprint(manifest: pd.DataFrame, classes: Sequence[str], packed_size: int) -> str:
    """sha256 over what training depends on: classes, packed size, and the images in the order of their pixels."""
    images = manifest[["path", "label", "domain", "split", "sha256", "verdict"]]
    return digest([list(classes), packed_size, images.to_numpy().tolist()])


def digest(content: Any) -> str:
    """sha256 over the JSON form of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
