"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from hemafast.errors import HemafastError


@contextmanager
def published_whole(target: Path, marker: str) -> Iterator[Path]:
    """A new empty folder beside `target` that takes its place when the block ends well, and vanishes when it does not.

    An older `target` is replaced only if it holds `marker` (or nothing), so that no foreign folder is ever deleted.
    Raises HemafastError if it must not be replaced.
    """
    target = target.resolve()
    _refuse_foreign(target, marker)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_debris(target, marker)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-new-{os.getpid()}-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)  # mkdtemp makes private folders
        _swap(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _refuse_foreign(target: Path, marker: str) -> None:
    if not target.exists() or (target / marker).is_file():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise HemafastError(f"{target} exists and was not written by hemafast.", "Move it, or choose another --output.")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}-old")


def _clear_debris(target: Path, marker: str) -> None:
    """What a crash left: an old folder is put back if its successor never arrived; unfinished ones are removed."""
    old = _old(target)
    if (old / marker).is_file() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    for unfinished in target.parent.glob(f".{target.name}-new-*"):
        if not _is_at_work(unfinished.name.split("-")[-2]):
            shutil.rmtree(unfinished, ignore_errors=True)


def _is_at_work(process: str) -> bool:
    """Whether the process that began a folder still runs, as far as its number tells."""
    return process.isdecimal() and psutil.pid_exists(int(process))


def _swap(staging: Path, target: Path) -> None:
    old = _old(target)
    if target.exists():
        target.rename(old)
    os.replace(staging, target)  # noqa: PTH105 - named for what it is
    shutil.rmtree(old, ignore_errors=True)
