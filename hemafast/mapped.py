"""Map files into memory. A file that is cut while it is mapped ends the process with a line that names it.

Reading a mapped page that its file no longer has raises SIGBUS, in whichever thread reads it, and no error can be
raised from there. Reading the same rows with `preadv` would be an error instead, but costs 11 to 33 % of the loader's
rate.
"""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError
from hemafast.printable import printable

RESTORE = (
    "Restore it or run `hemafast prepare` again, then repeat the command. "
    "A training goes on with `hemafast train --resume`."
)
"""Remedy for a file of a prepared data set that was cut, deleted or replaced under a running command."""

_SIGINFO = 4  # SA_SIGINFO in bits/sigaction.h
_FAULT_ADDRESS = 16  # bytes before si_addr in siginfo_t
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)

_maps: dict[int, tuple[int, str]] = {}
"""End and file of each map, by its start."""


class _Action(ctypes.Structure):
    """struct sigaction of Linux with 64 bits."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ubyte * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def map_file(path: Path, *, offset: int = 0, shape: tuple[int, ...] | None = None) -> npt.NDArray[np.uint8]:
    """The bytes of a file from `offset` on, read when they are touched.

    Raises OSError if the file cannot be read, ValueError if it is empty or too short.
    """
    _watch()
    whole = np.memmap(path, np.uint8, mode="r", offset=offset, shape=shape)
    start = whole.ctypes.data
    _maps[start] = start + whole.nbytes, str(path)
    weakref.finalize(whole, _maps.pop, start, None).atexit = False
    return np.asarray(whole)  # indexing a plain array costs a third of indexing a np.memmap


@functools.cache
def _watch() -> Any:
    """Handle SIGBUS from now on. Returns what must stay alive for that."""
    libc, before = ctypes.CDLL(None), _Action()

    def handle(number: int, information: int, context: int) -> None:
        address = ctypes.c_size_t.from_address(information + _FAULT_ADDRESS).value
        for start, (end, path) in tuple(_maps.items()):
            if start <= address < end:
                os.write(
                    2, f"\nerror: {printable(path)} was cut while it was read. {RESTORE}\n".encode(errors="replace")
                )
                os._exit(HemafastError.exit_code)
        libc.sigaction(number, ctypes.byref(before), None)  # not ours: the same instruction raises it again

    handler = _HANDLER(handle)
    ours = _Action(handler=ctypes.cast(handler, ctypes.c_void_p).value, flags=_SIGINFO)
    libc.sigaction(int(signal.SIGBUS), ctypes.byref(ours), ctypes.byref(before))
    return handler, handle
