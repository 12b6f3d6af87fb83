"""One process trains in a run folder, and whoever comes second hears of the first."""

import errno
import fcntl
import os
import platform

import pytest

from hemafast.engine import trainer
from hemafast.errors import HemafastError
from hemafast.run_folder import _is_locked, locked

NOBODY = 2**22 + 1
"""No process has this number: it is above the highest."""


def holder_of(folder) -> str:
    return (folder / ".lock").read_text(encoding="utf-8")


def test_the_second_is_told_who_the_first_is(tmp_path):
    with locked(tmp_path):
        with pytest.raises(HemafastError) as caught, locked(tmp_path):
            pass
        assert f"process {os.getpid()} on {platform.node()}, since 20" in caught.value.problem
        assert f"kill {os.getpid()}" in caught.value.remedy
        assert holder_of(tmp_path).startswith(f"{os.getpid()} ")  # the second has not written over it
    assert not _is_locked(tmp_path)
    assert holder_of(tmp_path) == ""


def test_the_lock_of_a_process_that_died_is_seen_through(tmp_path):
    (tmp_path / ".lock").write_text(f"{NOBODY} {platform.node()} 2026-01-01 00:00:00")
    with locked(tmp_path):
        assert holder_of(tmp_path).startswith(f"{os.getpid()} ")


def test_a_lock_of_another_host_names_it(tmp_path):
    with locked(tmp_path):
        (tmp_path / ".lock").write_text("17 elsewhere 2026-01-01 00:00:00")
        with pytest.raises(HemafastError) as caught, locked(tmp_path):
            pass
    assert "process 17 on elsewhere" in caught.value.problem
    assert "Ctrl-C" in caught.value.remedy


@pytest.mark.parametrize(("pid", "refused"), [(os.getppid(), True), (NOBODY, False)])
def test_without_locks_a_process_of_this_host_is_noticed_and_the_rest_is_said(
    tmp_path, monkeypatch, caplog, pid, refused
):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (tmp_path / ".lock").write_text(f"{pid} {platform.node()} 2026-01-01 00:00:00")
    if refused:
        with pytest.raises(HemafastError, match=f"process {pid} on"), locked(tmp_path):
            pass
    else:
        with locked(tmp_path):
            pass
        assert "is on a file system without locks (" in caplog.text


def test_a_run_is_locked_before_its_checkpoint_is_read(settings, monkeypatch):
    """Else a process that waited for the first would go on from what is no longer the end of the run."""
    folder, seen = trainer.train(settings()), []
    opened = trainer.open_stopped

    def open_and_note(*given, **named):
        seen.append(_is_locked(folder))
        return opened(*given, **named)

    monkeypatch.setattr(trainer, "open_stopped", open_and_note)
    trainer.resume(folder, {"epochs": 2})
    assert seen == [True]
    assert not _is_locked(folder)


def test_a_finished_run_in_a_folder_that_cannot_be_written_is_still_finished(settings):
    folder = trainer.train(settings())
    lock = folder / ".lock"
    lock.unlink()
    lock.mkdir()  # stands for any folder in which no lock can be made, also for root
    assert trainer.resume(folder) == folder
