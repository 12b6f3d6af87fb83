"""Hash a prepared data set again and name everything that is not what it was."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from hemafast.errors import HemafastError
from hemafast.prepare import schema
from hemafast.prepare.ingest import Progress
from hemafast.prepare.lists import sha256_of
from hemafast.prepare.reader import (
    PackedPixels,
    open_packed,
    open_squares,
    packed_files,
    read_info,
    read_manifest,
)
from hemafast.prepare.worklog import hash_squares

_CHUNK = 512  # images between two reports of progress


@dataclass(frozen=True, slots=True)
class Problem:
    """One file that is not what it was."""

    file: str
    problem: str


@dataclass(frozen=True, slots=True)
class Check:
    """What a check found."""

    images: int
    """Images whose bytes and pixels were hashed."""
    files: int
    """Other files that were hashed."""
    problems: tuple[Problem, ...]


def check(folder: Path, progress: Progress = lambda done, total: None) -> Check:
    """Hash every image, every packed square and every other file of the prepared data set at `folder`.

    Raises HemafastError if there is no data set, or if dataset.json is not as it was written: nothing else can be
    judged then.
    """
    info = read_info(folder)
    problems = [*_check_files(folder, info)]
    if any(problem.file == schema.MANIFEST for problem in problems):
        return Check(0, len(info.files), tuple(problems))
    manifest = read_manifest(folder, info)
    broken = [*_check_packed_files(folder, info, len(manifest))]
    packed = [] if broken else [open_packed(folder, info, len(manifest), size) for size in info.pack_sizes]
    problems += broken
    problems += _check_images(folder, manifest, packed, progress)
    problems += _find_strangers(folder, info, manifest)
    return Check(len(manifest), len(info.files), tuple(problems))


def _check_files(folder: Path, info: schema.DatasetInfo) -> Iterator[Problem]:
    for name, expected in info.files.items():
        problem = _compare(folder / name, expected)
        if problem:
            yield Problem(name, problem)


def _compare(path: Path, expected: str) -> str:
    """What is wrong with a file, or nothing."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        return "it is no plain file"
    try:
        found = sha256_of(path)
    except OSError as error:
        return error.strerror or "it cannot be read"
    return "" if found == expected else f"its sha256 is {found}, not {expected}"


def _check_packed_files(folder: Path, info: schema.DatasetInfo, images: int) -> Iterator[Problem]:
    """Everything in them but the pixels."""
    for size in info.pack_sizes:
        for name, rows in packed_files(info, images, size):
            try:
                open_squares(folder / schema.PACKED / name, rows, size)
            except HemafastError as error:
                yield Problem(f"{schema.PACKED}/{name}", error.problem)


def _check_images(
    folder: Path, manifest: pd.DataFrame, packed: Sequence[PackedPixels], progress: Progress
) -> Iterator[Problem]:
    """The bytes of every image, and its packed squares if there are any to look at."""

    def check_image(number: int, path: str, sha256: str, pixels_xxh128: str) -> list[Problem]:
        problem = _compare(folder / path, sha256)
        found = [Problem(path, problem)] if problem else []
        squares = [np.ascontiguousarray(sized[number]) for sized in packed]
        empty = not any(square.any() for square in squares)  # of an image that could not be decoded
        sound = hash_squares(squares) == pixels_xxh128 if pixels_xxh128 else empty
        return (
            found if sound or not squares else [*found, Problem(path, f"its packed pixels (row {number}) were changed")]
        )

    columns = (manifest[name] for name in ("path", "sha256", "pixels_xxh128"))
    rows = list(zip(range(len(manifest)), *columns, strict=True))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            for problems in pool.map(lambda row: check_image(*row), chunk):
                yield from problems
            progress(start + len(chunk), len(rows))


def _find_strangers(folder: Path, info: schema.DatasetInfo, manifest: pd.DataFrame) -> Iterator[Problem]:
    known = {schema.INFO, *info.files, *manifest["path"]}
    for size in info.pack_sizes:
        known |= {f"{schema.PACKED}/{name}" for name, _ in packed_files(info, len(manifest), size)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_dir() and name not in known:
            yield Problem(name, "it does not belong to the data set")
