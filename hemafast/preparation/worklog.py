"""A log of the images that a preparation has read: an interrupted one need not read them again.

Each row of the manifest becomes a line of JSON once the image and its squares are written. A kill may tear a line, and
a power cut may lose the files that a line describes: `sound_rows` checks both. Rows stay in the log, not in the memory,
until `read_rows` makes a table of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pandas as pd

from hemafast.preparation.pixels import SquareFiles, hash_squares
from hemafast.preparation.publish import log_of
from hemafast.preparation.schema import IMAGES, MANIFEST_COLUMNS, QUARANTINED, QUARANTINED_IMAGES
from hemafast.preparation.tables.lists import sha256_of
from hemafast.preparation.threads import batches
from hemafast.progress import Progress, stage
from hemafast.reading import parse_json
from hemafast.regular import open_regular

Row = dict[str, Any]

_AT_ONCE = 4096  # lines

_SELECTED = {"split", "fold", "duplicate_group", "group"}
"""Columns of the manifest that need all images; `selection.select_images` fills them in."""
LOGGED = {name: kind for name, kind in MANIFEST_COLUMNS.items() if name not in _SELECTED}
LOGGED |= {"ready_split": "str", "listed_group": "str"}
"""Columns of a row of the log, and their types."""


def sound_rows(folder: Path, squares: Sequence[SquareFiles], pool: Executor, progress: Progress) -> set[int]:
    """Numbers of the rows of an interrupted preparation whose files and squares are unchanged.

    Drops all other rows from the log of `folder`, or begins one.
    """
    log, sound = log_of(folder), set[int]()
    fresh = log.with_name(f"{log.name}.tmp")
    with fresh.open("w", encoding="utf-8") as file:
        if total := sum(1 for _ in _whole_lines(log)):
            with stage(progress, "hashing images read before", total):
                for lines in batches(_whole_lines(log), _AT_ONCE, lambda _: 0):
                    kept = [line for line in _sound(lines, folder, squares, pool) if line["number"] not in sound]
                    append_rows(file, ((line["number"], line["row"]) for line in kept))
                    sound |= {line["number"] for line in kept}
                    progress.advance(len(lines))
    fresh.replace(log)
    return sound


def append_rows(log: TextIO, rows: Iterable[tuple[int, Row]]) -> None:
    """Add rows with their numbers to a log. Their images and squares must have been written."""
    log.writelines(json.dumps({"number": number, "row": row}) + "\n" for number, row in rows)
    log.flush()


def read_rows(log: Path) -> pd.DataFrame:
    """The rows of a finished log, with the columns LOGGED, by their numbers.

    Raises KeyError, TypeError or ValueError for a row that no preparation can have written.
    """
    parts = [pd.DataFrame(columns=list(LOGGED)).astype(LOGGED)]
    for lines in batches(_whole_lines(log), _AT_ONCE, lambda _: 0):
        numbers = np.array([line["number"] for line in lines], dtype=np.int64)
        part = pd.DataFrame([line["row"] for line in lines], index=numbers)
        parts.append(part[list(LOGGED)].astype(LOGGED))
    return pd.concat(parts[1:] or parts).sort_index()


def _whole_lines(log: Path) -> Iterator[dict[str, Any]]:
    if not log.exists():
        return
    with open_regular(log) as file, suppress(ValueError):  # torn; what follows is useless
        yield from (parse_json(line.decode("utf-8", "replace")) for line in file)


def _sound(
    lines: Sequence[dict[str, Any]], folder: Path, squares: Sequence[SquareFiles], pool: Executor
) -> Iterator[dict[str, Any]]:
    sound = pool.map(lambda line: _is_sound(folder, line["number"], line["row"], squares), lines)
    return (line for line, is_sound in zip(lines, sound, strict=True) if is_sound)


def _is_sound(folder: Path, number: int, row: Row, squares: Sequence[SquareFiles]) -> bool:
    path = folder / row["path"]
    moved = folder / row["path"].replace(f"{IMAGES}/", f"{QUARANTINED_IMAGES}/", 1)
    if not path.exists() and moved.exists():  # the kill came after a contradiction was quarantined
        path.parent.mkdir(parents=True, exist_ok=True)
        moved.rename(path)
    if row["verdict"] == QUARANTINED:
        return False  # these are few; reading them again gives the reason again
    with suppress(OSError):
        if sha256_of(path) == row["sha256"]:
            return bool(hash_squares(file.read(number) for file in squares) == row["pixels_xxh128"])
    return False
