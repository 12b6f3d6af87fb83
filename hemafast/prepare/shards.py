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

from hemafast.prepare.pixels import SquareFile
from hemafast.prepare.schema import MANIFEST, MANIFEST_COLUMNS, PACKED, SHARDS, in_split, packed_file, shard_file
from hemafast.prepare.split import SPLITS


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


def write_packed(
    folder: Path, manifest: pd.DataFrame, squares: SquareFile, numbers: npt.NDArray[np.int64], size: int
) -> None:
    """Write the pixels of each split in manifest order, one square at a time.

    `numbers` is (manifest rows,): the number in `squares` of each row's pixels.
    """
    (folder / PACKED).mkdir()
    for split in SPLITS:
        wanted = numbers[in_split(manifest, split).index.to_numpy()]
        header = {"descr": "|u1", "fortran_order": False, "shape": (len(wanted), size, size, 3)}
        with (folder / packed_file(split, size)).open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            for number in wanted:
                file.write(squares.read(number))


def fingerprint(manifest: pd.DataFrame, classes: Sequence[str], packed_size: int) -> str:
    """sha256 over what training depends on: classes, packed size, and the images in the order of their pixels."""
    images = manifest[["path", "label", "domain", "split", "sha256", "verdict"]]
    return digest([list(classes), packed_size, images.to_numpy().tolist()])


def digest(content: Any) -> str:
    """sha256 over the JSON form of `content`."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
