"""What a preparation has verified so far, written down as it goes, so that a killed one need not start again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import xxhash

from hemafast.prepare.lists import sha256_of
from hemafast.prepare.pixels import SquareFiles
from hemafast.prepare.publish import log_of
from hemafast.prepare.schema import IMAGES, QUARANTINED, REFUSED

Row = dict[str, Any]


class WorkLog:
    """Rows of the manifest, one line of JSON each, appended once the image and its squares are written.

    A line may be torn by a kill, and what it vouches for may be missing after a power cut: `sound_rows` believes
    neither.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._path = folder, log_of(folder)
        self._lines = self._whole_lines()
        self._file = self._path.open("a", encoding="utf-8")

    def __enter__(self) -> WorkLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sound_rows(self, squares: Sequence[SquareFiles], pool: Executor) -> dict[int, Row]:
        """Rows of an earlier preparation by number, those whose files and squares are still what they were.

        The log then names these alone; until it does, the old one stands.
        """
        sound = pool.map(lambda line: self._is_sound(line, squares), self._lines)
        rows = {line["number"]: line["row"] for line, good in zip(self._lines, sound, strict=True) if good}
        fresh = self._path.with_name(f"{self._path.name}.tmp")
        fresh.write_text("".join(_lines_of(rows.items())), encoding="utf-8")
        self._file.close()
        fresh.replace(self._path)
        self._file = self._path.open("a", encoding="utf-8")
        return rows

    def append(self, rows: Iterable[tuple[int, Row]]) -> None:
        """Add rows under their numbers; what they vouch for must have been written."""
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
                break  # torn; what follows is of no use
        return lines

    def _is_sound(self, line: dict[str, Any], squares: Sequence[SquareFiles]) -> bool:
        row = line["row"]
        path: Path = self._folder / row["path"]
        moved = self._folder / row["path"].replace(f"{IMAGES}/", f"{QUARANTINED}/", 1)
        if not path.exists() and moved.exists():  # a contradiction that was taken out before the kill
            path.parent.mkdir(parents=True, exist_ok=True)
            moved.rename(path)
        if row["verdict"] == REFUSED:
            return False  # few; and what was wrong with them is told best by looking again
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

    It notices damage as sha256 does, at a tenth of the time; against forgery, the sha256 of the original bytes stands.
    """
    digest = xxhash.xxh3_128()
    for square in squares:
        digest.update(square)
    return digest.hexdigest()
