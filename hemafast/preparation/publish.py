"""Write a folder that appears whole or not at all, even if the process is killed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hemafast.errors import HemafastError
from hemafast.files import FULL, open_in_place
from hemafast.preparation.schema import is_prepared
from hemafast.progress import SILENT, Progress, stage

_MAKE_ROOM = "Make room, or name another --output."
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100  # fcntl.h: paths count from the working directory
_NO_SUCH_CALL = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    """Turn errors of the disk into errors that name `target` and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise HemafastError(f"The disk of {target} is full.", _MAKE_ROOM) from error
        remedy = "Make its folder writable, or name another --output."
        raise HemafastError(f"{target} cannot be written ({error}).", remedy) from error


@contextmanager
def kept_beside(folder: Path) -> Iterator[Path]:
    """Yield `folder`, made if it is missing, for one process at a time; whatever happens, it and its work log stay.

    Raises HemafastError if another process works in it, or if the disk is full.
    """
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(folder):
            drop_links(folder)
            if not log_of(folder).exists():
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            yield folder


@contextmanager
def published_whole(target: Path, key: str, *, progress: Progress = SILENT) -> Iterator[Path]:
    """Yield a folder beside `target` that replaces `target` when the block succeeds.

    If the block raises a HemafastError or an OSError, the folder is deleted. If it is interrupted or killed and the
    folder has a work log (`log_of`), both stay, and the next call with the same `key` (16 hexadecimal digits) resumes
    in them. An older `target` is replaced only if it is a prepared data set or empty.

    Raises HemafastError if `target` must not be replaced, if another process is writing it, or if the disk is full.
    """
    target = target.resolve()
    refuse_foreign(target)
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            staging = target.with_name(f".{target.name}-new-{key}")
            drop_links(staging)
            _put_back(target)
            _clear_debris(target, but=staging.name)
            if not log_of(staging).exists():
                shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir(exist_ok=True)
            try:
                yield staging
                with stage(progress, "writing to disk"):
                    sync(staging)
                # The log goes first: after the swap, the older data set has the name of the staging folder.
                log_of(staging).unlink(missing_ok=True)
                _swap(staging, target)
            except (HemafastError, OSError):
                _clear_debris(target)
                raise
            _clear_debris(target)


def log_of(folder: Path) -> Path:
    """The work log of a staging folder: beside it, because it is not published."""
    return folder.with_name(f"{folder.name}.jsonl")


def is_work_file(name: str) -> bool:
    """Whether a name is that of a lock or of unfinished work beside a data set."""
    return bool(re.fullmatch(r"\..+(\.lock|-old|-(new|part-\d+-of-\d+)-[0-9a-f]{16}(\.jsonl(\.tmp)?)?)", name))


def recover(target: Path) -> None:
    """Clean up after a kill during publishing: put the older folder back if `target` is missing, else delete it.

    Does nothing while another process is writing.
    """
    target = target.resolve()
    if _old(target).exists():
        with suppress(HemafastError, OSError), locked(target):
            _put_back(target)


def refuse_foreign(target: Path) -> None:
    """Raise HemafastError if `target` holds files that hemafast did not write, or cannot be renamed."""
    if target.is_mount():
        remedy = f"Name a folder inside it: --output {target / 'prepared'}"
        raise HemafastError(f"{target} is a mount point, which cannot be replaced.", remedy)
    if not target.exists() or is_prepared(target):
        return
    if not target.is_dir() or any(target.iterdir()):
        raise HemafastError(f"{target} exists and was not written by hemafast.", "Move it, or choose another --output.")


def refuse_too_little_room(target: Path, needed: int) -> None:
    """Raise HemafastError if the disk of `target` has less than `needed` bytes free."""
    there = next(folder for folder in (target.resolve(), *target.resolve().parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        problem = f"{target} needs {needed / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} MB free."
        raise HemafastError(problem, _MAKE_ROOM)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Hold the lock of `target`, a file beside it. The system releases it when the process ends.

    Raises HemafastError if another process holds it.
    """
    path = lock_of(target)
    with open_in_place(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            problem = f"Another hemafast (process {file.read().strip() or 'unknown'}) is writing {target}."
            raise HemafastError(problem, "Wait for it, or stop it.") from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def lock_of(target: Path) -> Path:
    """The lock file of a folder: hidden, beside it."""
    return target.with_name(f".{target.name.removeprefix('.')}.lock")


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}-old")


def drop_links(staging: Path) -> None:
    """Remove links in what a killed process left: nothing of it may be written elsewhere."""
    log = log_of(staging)
    found = [staging, log, log.with_name(f"{log.name}.tmp")]
    for parent, folders, files in os.walk(staging):
        found += [Path(parent, name) for name in (*folders, *files)]
    for path in filter(Path.is_symlink, found):
        path.unlink()


def _put_back(target: Path) -> None:
    old = _old(target)
    if old.is_symlink():
        old.unlink()
    if is_prepared(old) and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _clear_debris(target: Path, but: str = "") -> None:
    """Delete what killed processes left, except names that begin with `but`."""
    work = re.compile(rf"\.{re.escape(target.name)}-new-[0-9a-f]{{16}}(\.jsonl(\.tmp)?)?")
    for path in (_old(target), *(path for path in target.parent.iterdir() if work.fullmatch(path.name))):
        if but and path.name.startswith(but):
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Wait until everything in `folder` is on the disk, so that no rename reaches the disk before the files."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(descriptor) != 0:
            raise OSError(ctypes.get_errno(), "the disk did not take all data", str(folder))
    finally:
        os.close(descriptor)


def _swap(staging: Path, target: Path) -> None:
    """Replace `target` by `staging`, in one step if the file system can exchange two folders."""
    old = _old(target)
    if not target.exists():
        staging.rename(target)
    elif _exchanged(staging, target):
        staging.rename(old)
    else:
        target.rename(old)
        staging.rename(target)
    sync(target.parent)


def _exchanged(first: Path, second: Path) -> bool:
    """Exchange two folders. Returns False if the file system or the C library cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    if call(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _NO_SUCH_CALL:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
