"""Hash a prepared data set again and list every file that has changed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.pixels import hash_squares
from hemafast.preparation.reader import PackedPixels, open_packed, open_squares, packed_files, read_info, read_manifest
from hemafast.preparation.shards import shard_lists
from hemafast.preparation.tables.lists import sha256_of
from hemafast.preparation.threads import Pool
from hemafast.progress import SILENT, Progress, stage


@dataclass(frozen=True, slots=True)
class Problem:
    """A file that differs from what was prepared."""

    file: str
    problem: str


@dataclass(frozen=True, slots=True)
class Verification:
    """The result of `verify`."""

    images: int
    """Number of images whose bytes and pixels were hashed."""
    files: int
    """Number of other files that were hashed."""
    problems: tuple[Problem, ...]


def verify(folder: Path, *, progress: Progress = SILENT) -> Verification:
    """Hash every image, every packed square and every other file of a prepared data set.

    Args:
        folder: the prepared data set.
        progress: receives every file and every image.

    Returns:
        The number of images and files, and the problems found.

    Raises:
        HemafastError: `folder` is not a prepared data set, or its dataset.json was changed, so that nothing else can
            be verified.
    """
    info = read_info(folder)
    problems: list[Problem] = []
    with stage(progress, "hashing files", len(info.files), unit="files"):
        for name, expected in info.files.items():
            if problem := _compare(folder / name, expected):
                problems.append(Problem(name, problem))
            progress.advance()
    if any(problem.file == schema.MANIFEST for problem in problems):
        return Verification(0, len(info.files), tuple(problems))
    manifest = read_manifest(folder, info, (*schema.OPENED, "sha256"))
    problems += _verify_lists(folder, info, manifest)
    broken = [*_verify_packed_files(folder, info, len(manifest))]
    packed = [] if broken else [open_packed(folder, info, len(manifest), size) for size in info.pack_sizes]
    problems += broken
    with stage(progress, "hashing images", len(manifest)):
        problems += _verify_images(folder, manifest, packed, progress)
    problems += _find_strangers(folder, info, manifest)
    return Verification(len(manifest), len(info.files), tuple(problems))


def _compare(path: Path, expected: str) -> str:
    """What is wrong with a file; empty if nothing is."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return "it is not a regular file"
    try:
        found = sha256_of(path)
    except OSError as error:
        return error.strerror or "it cannot be read"
    return "" if found == expected else f"its sha256 is {found}, not {expected}"


def _verify_lists(folder: Path, info: schema.DatasetInfo, manifest: pd.DataFrame) -> Iterator[Problem]:
    """Whether file lists are those of the manifest; whether they are damaged was seen before."""
    lists = shard_lists(manifest, info.classes, folds=info.folds, count=info.settings["shards"])
    for file, text in lists:
        name = file.as_posix()
        if info.files.get(name) != hashlib.sha256(text.encode()).hexdigest():
            yield Problem(name, f"it lists other images than {schema.MANIFEST}")


def _verify_packed_files(folder: Path, info: schema.DatasetInfo, images: int) -> Iterator[Problem]:
    """Headers and lengths of the files of packed squares, but not their pixels."""
    for size in info.pack_sizes:
        for name, rows in packed_files(info, images, size):
            try:
                open_squares(folder / schema.PACKED / name, rows, size)
            except HemafastError as error:
                yield Problem(f"{schema.PACKED}/{name}", error.problem)


def _verify_images(
    folder: Path, manifest: pd.DataFrame, packed: Sequence[PackedPixels], progress: Progress
) -> Iterator[Problem]:
    """The bytes of every image, and its packed squares in `packed`, which may be empty."""

    def verify_image(number: int, path: str, sha256: str, pixels_xxh128: str) -> list[Problem]:
        problem = _compare(folder / path, sha256)
        found = [Problem(path, problem)] if problem else []
        squares = [np.ascontiguousarray(sized[number]) for sized in packed]
        empty = not any(square.any() for square in squares)  # as for an image that could not be decoded
        sound = hash_squares(squares) == pixels_xxh128 if pixels_xxh128 else empty
        if squares and not sound:
            found.append(Problem(path, f"its packed pixels (row {number}) have changed"))
        return found

    with Pool(len(os.sched_getaffinity(0))) as pool:
        columns = (manifest[name] for name in ("path", "sha256", "pixels_xxh128"))
        for problems in pool.map(verify_image, range(len(manifest)), *columns):
            yield from problems
            progress.advance()


def _find_strangers(folder: Path, info: schema.DatasetInfo, manifest: pd.DataFrame) -> Iterator[Problem]:
    known = {schema.INFO, *info.files, *manifest["path"]}
    for size in info.pack_sizes:
        known |= {f"{schema.PACKED}/{name}" for name, _ in packed_files(info, len(manifest), size)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in known:
            yield Problem(name, "it does not belong to the data set")
