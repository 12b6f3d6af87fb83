"""A disk that takes no more: training goes on or stops clearly, and what was saved before is whole."""

import errno
import os
import resource
import signal
from functools import partial
from itertools import count

import forked
import pytest

from hemafast import files
from hemafast.config import to_json
from hemafast.engine import hooks
from hemafast.engine.checkpoint import load_last, save_last
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.run_folder import BEST, LAST, LOG_TABLE


def limit_a_save(number: int) -> None:
    """In the process that trains: no file may grow beyond 100 kB during that save, counted from 1."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write beyond the limit is an error of the file
    save, numbers = hooks.save_last, count(1)

    def save_within_a_limit(*arguments, **named):
        limit = 100_000 if next(numbers) == number else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            save(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    hooks.save_last = save_within_a_limit


@pytest.fixture
def full(monkeypatch):
    """`full(*calls)`: these calls of `save_last` in the loop find the disk full, counted from 1."""

    def make(*calls: int) -> None:
        numbers = count(1)

        def save(*arguments, **named):
            if next(numbers) not in calls:
                return save_last(*arguments, **named)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(os, "fsync", no_space)
                return save_last(*arguments, **named)

        monkeypatch.setattr(hooks, "save_last", save)

    return make


def no_space(_):
    raise OSError(errno.ENOSPC, "No space left on device")


def litter(folder):
    return [path.name for path in folder.iterdir() if path.name.endswith(".part")]


def test_a_checkpoint_that_finds_no_room_is_a_warning_and_the_one_before_is_whole(settings, full, caplog):
    full(2)  # the first is that of the start
    seen = []
    config = settings(epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks.Saver, "hold_best", lambda self: seen.append(load_last(self._folder / LAST)))
        folder = train(config)
    assert "cannot be saved (No space left on device" in caplog.text.replace("[Errno 28] ", "")
    assert [state["progress"]["epochs_done"] for state in seen] == [0, 0]  # epoch 1 was not saved
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 2
    assert litter(folder) == []


def test_a_start_that_finds_no_room_is_refused(settings, full):
    full(1)
    with pytest.raises(HemafastError, match=r"cannot be saved.*no checkpoint yet.*start it again") as error:
        train(settings())
    assert error.value.exit_code == 2


def test_a_stop_that_finds_no_room_says_so_and_keeps_what_was_saved(settings, full, signal_at, assert_equal_runs):
    full(3)
    config = settings(epochs=3)
    with signal_at(8), pytest.raises(HemafastError, match="The checkpoint before is intact") as error:
        train(config)
    assert not isinstance(error.value, StoppedError)
    (folder,) = config.output.iterdir()
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 1
    assert litter(folder) == []
    resume(folder)
    assert_equal_runs(folder, train(settings(epochs=3)))


def test_a_run_folder_that_was_moved_is_named_and_resumes_when_it_is_back(
    settings, monkeypatch, tmp_path, assert_equal_runs
):
    config, calls, write = settings(epochs=1), count(1), hooks.Saver._write_best

    def moved(self):
        if next(calls) == 2:  # the first checkpoint is that of the start
            self._folder.rename(tmp_path / "aside")
        write(self)

    with monkeypatch.context() as patch:
        patch.setattr(hooks.Saver, "_write_best", moved)
        with pytest.raises(HemafastError, match=r"was removed or moved\. Move it back.*--resume") as error:
            train(config)
    folder = (tmp_path / "aside").rename(error.value.remedy.rpartition(" ")[2].strip("`."))
    assert_equal_runs(resume(folder), train(settings(epochs=1)))


@pytest.fixture
def refused(monkeypatch):
    """`refused(name, *calls)`: these writes of the file of this name find the disk full, counted from 1."""

    def make(name: str, *calls: int) -> None:
        numbers, replace = count(1), files._replace

        def replace_or_not(part, target):
            if target.name == name and next(numbers) in calls:
                no_space(None)
            replace(part, target)

        monkeypatch.setattr(files, "_replace", replace_or_not)

    return make


@pytest.mark.parametrize("name", [BEST, LOG_TABLE])
def test_what_found_no_room_is_written_later_and_the_run_ends_as_without_a_fault(
    settings, refused, caplog, assert_equal_runs, name
):
    undisturbed = train(settings(epochs=2))
    refused(name, 1)
    folder = train(settings(epochs=2))
    assert name in caplog.text
    assert "Training continues" in caplog.text
    assert_equal_runs(folder, undisturbed)


@pytest.mark.parametrize("name", [LOG_TABLE, LAST])
def test_what_finds_no_room_at_the_end_is_an_error_and_the_run_can_be_finished(
    settings, refused, assert_equal_runs, name
):
    undisturbed = train(settings(epochs=1))
    refused(name, 1 if name == LOG_TABLE else 2)  # the first checkpoint is that of the start
    config = settings(epochs=1)
    with pytest.raises(HemafastError, match=rf"cannot be saved.*{name}.*--resume"):
        train(config)
    (folder,) = config.output.iterdir()
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 0  # never ahead of the rows
    assert_equal_runs(resume(folder), undisturbed)


@pytest.mark.slow
def test_a_file_that_may_grow_no_further_leaves_the_checkpoint_before(settings, tmp_path):
    """A real limit of the system, as torch's own writer meets it."""
    config, asked = settings(epochs=2), tmp_path / "settings.json"
    asked.write_text(to_json(config), encoding="utf-8")
    alone = {"cwd": tmp_path, "timeout": 120, "OMP_NUM_THREADS": "1"}
    done = forked.hemafast("train", "--config", asked, **alone, first=partial(limit_a_save, 2))
    assert done.returncode == 0, done.stderr
    (folder,) = config.output.iterdir()
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert "The checkpoint before is intact. Training continues" in log
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 2
    assert load_last(folder / f"{LAST}.1")["progress"]["epochs_done"] == 0
    assert litter(folder) == []


def test_checkpoints_are_written_within_an_epoch_when_it_is_time(settings, monkeypatch):
    saved, clock = [], count(step=40)
    monkeypatch.setattr(hooks.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(hooks, "save_last", lambda file, state, keep: saved.append(state["progress"]["steps_done"]))
    train(settings(save_every=1.0))
    assert saved[0] == 0
    assert saved[-1] == 6
    assert {0, 6} < set(saved)
