"""Complete files: a crash at any moment leaves the old file or the new one."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path


def write_whole(
    file: Path, write: Callable[[Path], object], *, before_replace: Callable[[], object] = lambda: None
) -> None:
    """Let `write` fill a file beside `file`, flush it to the disk, then replace `file` with it.

    `before_replace` is called when the new file is on the disk. Raises OSError as `write` does, and `file` then stays
    unchanged.
    """
    part = file.with_name(f".{file.name}.part")
    try:
        write(part)
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.chmod(0o644)  # some writers create private files
        before_replace()
        _replace(part, file)
    finally:
        part.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, completely or not at all. Raises OSError."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def damaged_entry(file: Path) -> str | None:
    """The first entry of a zip that torch wrote whose checksum is wrong; None if all are right.

    torch itself does not verify checksums, and reads garbage if a flipped bit turns an entry into a folder. Raises
    OSError and BadZipFile if the file is no zip.
    """
    with zipfile.ZipFile(file) as archive:
        folders = [entry.filename for entry in archive.infolist() if entry.external_attr]
        return next(iter(folders), None) or archive.testzip()


def _replace(file: Path, target: Path) -> None:
    """Rename `file` to `target`, and flush the folder to the disk."""
    file.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
