"""Write the files of a prepared data set that list its images: manifest, quarantine, split, sharded file lists."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemafast.files import csv_bytes
from hemafast.preparation import schema
from hemafast.preparation.split import SPLITS


def write_manifest(folder: Path, manifest: pd.DataFrame) -> None:
    """Write the manifest with its columns in the order of the schema."""
    columns = schema.MANIFEST_COLUMNS
    manifest[list(columns)].astype(columns).to_parquet(folder / schema.MANIFEST, index=False)


def write_quarantine(folder: Path, manifest: pd.DataFrame) -> None:
    """Write quarantine.csv: file, verdict (its kind) and reason of every quarantined image."""
    rows = [image.row() for image in schema.quarantined(manifest)]
    table = pd.DataFrame(rows, columns=["file", "verdict", "reason"])
    (folder / schema.QUARANTINE).write_bytes(csv_bytes(table))


def write_split(folder: Path, manifest: pd.DataFrame) -> None:
    """Write split.csv: path (domain/class/file), split and fold, in the form that --split-file reads."""
    images = schema.accepted(manifest)
    split = images[["path", "split", "fold"]].assign(path=schema.names_of(images)).sort_values("path")
    (folder / schema.SPLIT).write_bytes(csv_bytes(split))


def split_names(manifest: pd.DataFrame, folds: int | None) -> dict[str, tuple[str, int | None]]:
    """All splits that have file lists, by name: the split, and the fold that validates."""
    names: dict[str, tuple[str, int | None]] = {split: (split, None) for split in schema.splits_of(manifest)}
    for fold in range(folds or 0):
        names |= {f"fold{fold}-{split}": (split, fold) for split in SPLITS}
    return names


def shard_parts(manifest: pd.DataFrame, folds: int | None, count: int) -> Iterator[tuple[str, int, pd.DataFrame]]:
    """Cut each split into `count` parts of nearly equal length; yields split name, shard number and images.

    Any stretch of the manifest is a fair sample of classes and domains, and so is every part.
    """
    for name, (split, fold) in split_names(manifest, folds).items():
        images = schema.in_split(manifest, split, fold)
        for index, part in enumerate(np.array_split(np.arange(len(images)), count)):
            yield name, index, images.iloc[part]


def shard_lists(
    manifest: pd.DataFrame, classes: Sequence[str], *, folds: int | None, count: int
) -> Iterator[tuple[Path, str]]:
    """The relative path and the text of each file list, in DALI's format: lines of `relative/path label`."""
    index_of = {name: index for index, name in enumerate(classes)}
    for split, index, images in shard_parts(manifest, folds, count):
        lines = [f"{path} {index_of[label]}\n" for path, label in zip(images["path"], images["label"], strict=True)]
        yield schema.shard_file(split, index, count), "".join(lines)


def write_shards(
    folder: Path, manifest: pd.DataFrame, classes: Sequence[str], *, folds: int | None, count: int
) -> None:
    """Write the file lists."""
    (folder / schema.SHARDS).mkdir(exist_ok=True)
    for file, text in shard_lists(manifest, classes, folds=folds, count=count):
        (folder / file).write_text(text, encoding="utf-8")


def fingerprint(manifest: pd.DataFrame, classes: Sequence[str], pack_sizes: Sequence[int]) -> str:
    """sha256 over what training depends on: classes, packed sizes, and the images in order."""
    columns = ["path", "label", "domain", "split", "fold", "window", "sha256", "pixels_xxh128", "verdict"]
    rows = manifest[columns].itertuples(index=False, name=None)
    return digest([list(classes), list(pack_sizes), Streamed(map(list, rows))])


def digest(content: Any) -> str:
    """sha256 over the JSON form of `content`.

    In a list, a `Streamed` counts as the list of its items, of which few are in memory at once.
    """
    hashed = hashlib.sha256()
    for text in _json_pieces(content):
        hashed.update(text.encode())
    return hashed.hexdigest()


@dataclass(frozen=True, slots=True)
class Streamed:
    """Items of a list for `digest`, made one by one."""

    items: Iterable[Any]


def _json_pieces(content: Any) -> Iterator[str]:
    """The text of `json.dumps(content, sort_keys=True)`."""
    if not isinstance(content, list | tuple | Streamed):
        yield json.dumps(content, sort_keys=True)
        return
    before = "["
    for item in content.items if isinstance(content, Streamed) else content:
        yield before
        if isinstance(item, Streamed):
            yield from _json_pieces(item)
        else:
            yield json.dumps(item, sort_keys=True)
        before = ", "
    yield "]" if before == ", " else "[]"
