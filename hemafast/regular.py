"""Open files of unknown origin: regular ones only. A named pipe waits for a writer, and a device may never end."""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path


def open_regular(file: Path) -> BufferedReader:
    """`file`, opened for reading bytes. Never waits. Raises OSError if it is missing or no regular file."""
    return open(file, "rb", opener=_open)


def read_regular(file: Path, most: int = -1) -> bytes:
    """The bytes of a file, or its first `most`. Raises OSError as `open_regular`."""
    with open_regular(file) as stream:
        return stream.read(most)


def refuse_special(file: Path) -> None:
    """Raise OSError as `open_regular`, before a library opens `file` by its name."""
    open_regular(file).close()


def _open(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # a folder is an OSError of `open`
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no regular file, but a pipe or a device", path)
