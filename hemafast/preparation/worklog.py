"""A log of the images that an interrupted preparation has finished, so that the next call need not read them again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import xxhash

from hemafast.preparation.lists import sha256_of
from hemafast.preparation.pixels import SquareFiles
from hemafast.preparation.publish import log_of
from hemafast.preparation.schema import IMAGES, QUARANTINED, QUARANTINED_IMAGES
from hemafast.progress import SILENT, Progress, stage

Row = dict[str, Any]


class WorkLog:
    """Rows of the manifest as lines of JSON, each appended once the image and its squares are written.

    A kill may tear a line, and a power cut may lose the files that a line describes: `sound_rows` checks both.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, log_of(folder)
        self._lines = self._whole_lines()
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> WorkLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sound_rows(self, squares: Sequence[SquareFiles], pool: Executor, progress: Progress = SILENT) -> dict[int, Row]:
        """Rows of an interrupted preparation by number, if their files and squares are unchanged.

        Drops all other rows from the log.
        """
        rows: dict[int, Row] = {}
        if self._lines:
            with stage(progress, "hashing images read before", len(self._lines)):
                sound = pool.map(lambda line: self._is_sound(line, squares), self._lines)
                for line, is_sound in zip(self._lines, sound, strict=True):
                    if is_sound:
                        rows[line["number"]] = line["row"]
                    progress.advance()
        fresh = self._path.with_name(f"{self._path.name}.tmp")
        fresh.write_text("".join(_lines_of(rows.items())), encoding="utf-8")
        self._file.close()
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return rows

    def append(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Add rows with their numbers. Their images and squares must have been written."""
        self._file.writelines(_lines_of(rows))
        self._file.flush()

    def _whole_lines(self) -> list[dict[str, Any]]:
        if not self._path.is_file():
            return []
        lines = []
        for text in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                lines.append(json.loads(text))
            except ValueError:
                break  # torn; what follows is useless
        return lines

    def _is_sound(self, line: dict[str, Any], squares: Sequence[SquareFiles]) -> bool:
        row = line["row"]
        path: Path = self._folder / row["path"]
        moved = self._folder / row["path"].replace(f"{IMAGES}/", f"{QUARANTINED_IMAGES}/", 1)
        if not path.exists() and moved.exists():  # the kill came after a contradiction was quarantined
            path.parent.mkdir(parents=True, exist_ok=True)
            moved.rename(path)
        if row["verdict"] == QUARANTINED:
            return False  # these are few; reading them again gives the reason again
        try:
            if sha256_of(path) != row["sha256"]:
                return False
        except OSError:
            return False
        pixels_xxh128: str = row["pixels_xxh128"]
        return hash_squares(file.read(line["number"]) for file in squares) == pixels_xxh128


def _lines_of(rows: Iterable[tuple[int, Row]]) -> Iterator[str]:
    return (json.dumps({"number": number, "row": row}) + "\n" for number, row in rows)


def hash_squares(squares: Iterable[Any]) -> str:
    """XXH3 (128 bits) over the pixels of squares, one after the other.

    It notices damage as sha256 does, in a tenth of the time. The sha256 of the original bytes guards against forgery.
    """
    digest = xxhash.xxh3_128()
    for square in squares:
        digest.update(square)
    return digest.hexdigest()
