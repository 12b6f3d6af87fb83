"""Map files into memory. A file that is cut while it is mapped ends the process with a line that names it.

Reading a mapped page that its file no longer has raises SIGBUS, in whichever thread reads it, and no error can be
raised from there. Reading the same rows with `preadv` would be an error instead, but costs 11 to 33 % of the loader's
rate. The handler is native code and never waits for Python: the thread that reads may have given up the interpreter's
lock to one that waits for it.
"""

from __future__ import annotations

import ctypes
import functools
import signal
import threading
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

_HANDLER = """
declare i64 @write(i32, i64, i64)
declare void @_exit(i32)
declare i32 @sigaction(i32, i64, i64)
declare i32 @pause()

@told = internal global i64 0

define void @handle(i32 %number, i64 %information, i64 %context) {{
start:
  %place = add i64 %information, 16 ; of si_addr in siginfo_t
  %pointer = inttoptr i64 %place to ptr
  %address = load i64, ptr %pointer
  br label %compare

compare:
  %row = phi i64 [0, %start], [%next, %other]
  %cell = getelementptr [4 x i64], ptr inttoptr (i64 {maps} to ptr), i64 %row
  %fields = load [4 x i64], ptr %cell
  %begin = extractvalue [4 x i64] %fields, 0
  %end = extractvalue [4 x i64] %fields, 1
  %begun = icmp uge i64 %address, %begin
  %ended = icmp uge i64 %address, %end
  %not_ended = xor i1 %ended, true
  %inside = and i1 %begun, %not_ended
  br i1 %inside, label %ours, label %other

other:
  %next = add i64 %row, 1
  %more = icmp ult i64 %next, {rows}
  br i1 %more, label %compare, label %unknown

ours:
  %before = atomicrmw xchg ptr @told, i64 1 seq_cst
  %first = icmp eq i64 %before, 0
  br i1 %first, label %tell, label %wait

tell:
  %line = extractvalue [4 x i64] %fields, 2
  %length = extractvalue [4 x i64] %fields, 3
  %written = call i64 @write(i32 2, i64 %line, i64 %length)
  call void @_exit(i32 {code})
  unreachable

wait: ; for the thread that tells it
  %woken = call i32 @pause()
  br label %wait

unknown: ; the instruction is repeated, and does what it would do without this handler
  %restored = call i32 @sigaction(i32 %number, i64 {before}, i64 0)
  ret void
}}
"""
"""The handler, as LLVM compiles it in 10 ms; numba would take half a second for it."""

_SIGINFO = 4  # SA_SIGINFO in bits/sigaction.h
_ROWS = 65_536  # Linux lets a process have 65,530 maps

_maps = np.zeros((_ROWS, 4), np.uint64)
"""Of each map: start, end, and address and length of the line that is said when its file was cut. End 0: a free row."""
_mapping = threading.Lock()


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
    said = f"\nerror: {printable(str(path))} was cut while it was read. {RESTORE}\n".encode(errors="replace")
    _remember(whole, np.frombuffer(said, np.uint8))
    return np.asarray(whole)  # indexing a plain array costs a third of indexing a np.memmap


def _remember(whole: npt.NDArray[np.uint8], line: npt.NDArray[np.uint8]) -> None:
    """Let the handler say `line` for this map, until the map is gone."""
    start = whole.ctypes.data
    with _mapping:
        row = _maps[np.argmin(_maps[:, 1])]
        row[0], row[2], row[3] = start, line.ctypes.data, line.nbytes
        row[1] = start + whole.nbytes  # at last, for the handler may read at any moment
    weakref.finalize(whole, _forget, row, line).atexit = False


def _forget(row: npt.NDArray[np.uint64], _line: npt.NDArray[np.uint8]) -> None:
    row[1] = 0


@functools.cache
def _watch() -> Any:
    """Handle SIGBUS from now on. Returns what must stay alive for that."""
    from llvmlite import binding as llvm

    libc, before = ctypes.CDLL(None), _Action()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    code = HemafastError.exit_code
    text = _HANDLER.format(maps=_maps.ctypes.data, rows=_ROWS, before=ctypes.addressof(before), code=code)
    machine = llvm.Target.from_default_triple().create_target_machine()
    compiled = llvm.create_mcjit_compiler(llvm.parse_assembly(text), machine)
    compiled.finalize_object()
    ours = _Action(handler=compiled.get_function_address("handle"), flags=_SIGINFO)
    libc.sigaction(int(signal.SIGBUS), ctypes.byref(ours), ctypes.byref(before))
    return compiled, before
