"""Ask DALI, in a process of its own, how it reads images: a damaged one may crash it, and then only that process ends.

The process is started when it is first needed, and again after each crash. It ends with its parent, or when it has not
been asked for a minute.
"""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hemafast.preparation.dali_reader import Readings

_PATIENCE = 120.0  # seconds for a batch, imports included; then DALI hangs


class DaliApart:
    """DALI in another process, shared by all threads of this one."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._lock = threading.Lock()
        self._memory = os.memfd_create("images")
        self._child: tuple[subprocess.Popen[bytes], Connection] | None = None

    def read(self, encoded: Sequence[bytes]) -> Readings:
        """What DALI makes of each of at most `dali_reader.BATCH` images; None if it refuses, crashes or hangs."""
        if not encoded:
            return []
        with self._lock:
            readings = self._exchange(encoded)
            if readings is None:  # one by one, to find the culprit; also a single one, because a crash may be a race
                return [(self._exchange([data]) or [None])[0] for data in encoded]
            return readings

    def close(self) -> None:
        """End the process. It is started again when needed."""
        child, self._child = self._child, None
        if child is not None:
            process, connection = child
            connection.close()
            process.kill()
            process.wait()

    def _exchange(self, encoded: Sequence[bytes]) -> Readings | None:
        """The readings of one list; None if the process does not survive it."""
        _, connection = self._child = self._child or self._start()
        try:
            self._write(encoded)
            connection.send([len(data) for data in encoded])
            if connection.poll(_PATIENCE):
                readings: Readings = connection.recv()
                return readings
        except (EOFError, OSError):
            pass
        self.close()
        return None

    def _write(self, encoded: Sequence[bytes]) -> None:
        """Lay the images where the process reads them. A pipe would copy them three times."""
        offset = 0
        for data in encoded:
            if os.pwrite(self._memory, data, offset) != len(data):
                raise MemoryError("too little memory to check images")
            offset += len(data)

    def _start(self) -> tuple[subprocess.Popen[bytes], Connection]:
        ours, theirs = Pipe()
        given = (theirs.fileno(), self._memory)
        # Not PYTHONPATH, beside which the working directory would be searched too.
        code = f"import sys; sys.path[:] = {sys.path}; from hemafast.preparation.dali_reader import serve; "
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}serve(*{given}, {self._threads})"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,  # libraries print what they do not like
            pass_fds=given,
            start_new_session=True,  # Ctrl-C stops the parent, which then hangs up
        )
        theirs.close()
        return process, ours


@functools.cache
def dali_apart(threads: int) -> DaliApart:
    """The process of this program that has so many threads."""
    apart = DaliApart(threads)
    atexit.register(apart.close)
    return apart
