"""A log of the images that an interrupted preparation has finished, so that the next call need not read them again.

Each row of the manifest becomes a line of JSON once the image and its squares are written. A kill may tear a line, and
a power cut may lose the files that a line describes: `sound_rows` checks both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from hemafast.preparation.pixels import SquareFiles, hash_squares
from hemafast.preparation.publish import log_of
from hemafast.preparation.schema import IMAGES, QUARANTINED, QUARANTINED_IMAGES
from hemafast.preparation.tables.lists import sha256_of
from hemafast.progress import Progress, stage
from hemafast.reading import parse_json

Row = dict[str, Any]


def sound_rows(folder: Path, squares: Sequence[SquareFiles], pool: Executor, progress: Progress) -> dict[int, Row]:
    """Rows of an interrupted preparation by number, if their files and squares are unchanged.

    Drops all other rows from the log of `folder`, or begins one.
    """
    log, rows = log_of(folder), dict[int, Row]()
    if lines := _whole_lines(log):
        with stage(progress, "hashing images read before", len(lines)):
            sound = pool.map(lambda line: _is_sound(folder, line["number"], line["row"], squares), lines)
            for line, is_sound in zip(lines, sound, strict=True):
                if is_sound:
                    rows[line["number"]] = line["row"]
                progress.advance()
    fresh = log.with_name(f"{log.name}.tmp")
    with fresh.open("w", encoding="utf-8") as file:
        append_rows(file, rows.items())
    fresh.replace(log)
    return rows


def append_rows(log: TextIO, rows: Iterable[tuple[int, Row]]) -> None:
    """Add rows with their numbers to a log. Their images and squares must have been written."""
    log.writelines(json.dumps({"number": number, "row": row}) + "\n" for number, row in rows)
    log.flush()


def _whole_lines(log: Path) -> list[dict[str, Any]]:
    lines = []
    with suppress(FileNotFoundError, ValueError):  # ValueError: a torn line; what follows is useless
        for text in log.read_text(encoding="utf-8", errors="replace").splitlines():
            lines.append(parse_json(text))
    return lines


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
