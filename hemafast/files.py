"""Complete files: a crash at any moment leaves the old file or the new one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hemafast.errors import HemafastError


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


@contextmanager
def writing(target: Path, remedy: str = "Name another --output.") -> Iterator[None]:
    """Turn an OSError of the block into a HemafastError that names `target`."""
    try:
        yield
    except OSError as error:
        raise HemafastError(f"{target} cannot be written ({error}).", remedy) from error


def make_folder(folder: Path) -> None:
    """Make the folder of an output before the work for it begins. Raises HemafastError if it cannot be written to."""
    with writing(folder.absolute()):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def user_cache() -> Path:
    """The user's cache folder. A user id without a name has no home, and gets a folder of its own in TMPDIR."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(named) if named else Path.home() / ".cache"
    except RuntimeError:
        folder = Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    # Whoever else made it could put code into the caches.
    return folder if folder.lstat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="cache-"))


def write_text(file: Path, text: str) -> None:
    """Write UTF-8 text, completely or not at all. Raises OSError."""
    write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))


def _replace(file: Path, target: Path) -> None:
    """Rename `file` to `target`, and flush the folder to the disk."""
    file.replace(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
