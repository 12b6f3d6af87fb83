"""Files that are whole or not there: a crash at any moment leaves the old one or the new one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(
    file: Path, write: Callable[[Path], object], *, before_replace: Callable[[], object] = lambda: None
) -> None:
    """Let `write` fill a file beside `file`, flush it to the disk, then put it in its place.

    `before_replace` is called once the new file is safe. Raises OSError as `write` does; `file` is as it was then.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)  # some writers make private files
        before_replace()
        _replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all. Raises OSError."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _replace(file: Path, target: Path) -> None:
    """Rename `file` to `target`, and see to it that the disk knows."""
    file.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
