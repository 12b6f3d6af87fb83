"""The two libraries in C that make a disk fail and a clock jump: compiled on the spot, and loaded with LD_PRELOAD."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
KINDS = {"write": 0, "fsync": 1, "rename": 2, "open": 3}
"""Kinds of calls, as failing_disk.c numbers them."""


@dataclass(frozen=True)
class FailingDisk:
    """Which call fails, and how."""

    folder: Path
    kind: str = "write"
    nth: int = 0
    """From 1; 0 only counts the calls."""
    error: int = 0
    """An errno; 0 is a write of half of the bytes."""
    lasting: bool = False
    """Whether all later calls fail too."""

    def arm(self) -> None:
        """Begin to count in this process."""
        folder = os.fsencode(self.folder.resolve())
        ctypes.CDLL(None).failing_disk_arm(
            folder, KINDS[self.kind], ctypes.c_long(self.nth), self.error, int(self.lasting)
        )


@dataclass(frozen=True)
class JumpingClock:
    """By how much the clock is set, and when."""

    after: float
    """Seconds."""
    shift: float
    """Seconds; a negative number sets it back."""

    def arm(self) -> None:
        """Begin to wait in this process."""
        ctypes.CDLL(None).jumping_clock_arm(ctypes.c_double(self.after), ctypes.c_double(self.shift))


def calls_made() -> dict[str, int]:
    """Calls on files under the folder of the failing disk, by kind, since it was armed."""
    counted = ctypes.CDLL(None).failing_disk_count
    counted.restype = ctypes.c_long
    return {name: counted(kind) for name, kind in KINDS.items()}


def is_loaded() -> bool:
    """Whether this process was started with the library."""
    return hasattr(ctypes.CDLL(None), "failing_disk_arm") and hasattr(ctypes.CDLL(None), "jumping_clock_arm")


def build(folder: Path) -> Path | None:
    """Compile the library into `folder`; None without a C compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    library = folder / "faults.so"
    sources = [str(HERE / "failing_disk.c"), str(HERE / "jumping_clock.c")]
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), *sources, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return library if done.returncode == 0 else None
