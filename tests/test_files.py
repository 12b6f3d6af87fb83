"""Files are whole or not there, whatever happens while they are written."""

import errno
import os
import stat

import pytest
from power_cut import PowerCut, moments, power_cut

from hemafast.files import write_whole


def text(content):
    return lambda part: part.write_text(content, encoding="utf-8")


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "state.json"
    write_whole(file, text("old"))
    return file


def test_a_file_is_made_and_replaced(file):
    assert file.read_text(encoding="utf-8") == "old"
    write_whole(file, text("new"))
    assert file.read_text(encoding="utf-8") == "new"
    assert list(file.parent.iterdir()) == [file]


def test_others_may_read_what_a_writer_made_for_itself(file):
    def private(part):
        part.touch(0o600)

    write_whole(file, private)
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), ValueError(), KeyboardInterrupt()])
def test_a_write_that_fails_leaves_the_old_file_and_no_litter(file, error):
    def half(part):
        part.write_text("ne", encoding="utf-8")
        raise error

    with pytest.raises(type(error)):
        write_whole(file, half)
    assert file.read_text(encoding="utf-8") == "old"
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_disk_that_fails_leaves_the_old_file_and_no_litter(file, call, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="Input/output"):
        write_whole(file, text("new"))
    assert file.read_text(encoding="utf-8") == "old"
    assert list(file.parent.iterdir()) == [file]


def test_what_makes_room_is_called_when_the_new_file_is_safe_and_the_old_one_still_there(file, monkeypatch):
    calls = []

    def spied(name, call):
        return lambda *arguments: (calls.append(name), call(*arguments))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, spied(name, getattr(os, name)))
    seen = lambda: calls.append(file.read_text(encoding="utf-8"))  # noqa: E731 - spelt as the argument it is
    write_whole(file, text("new"), before_replace=seen)
    assert calls == ["fsync", "old", "replace", "fsync"]  # the file, then the folder


def test_a_power_cut_at_any_moment_leaves_the_old_file_or_the_new_one(file):
    left = []
    for moment in moments():
        write_whole(file, text("old"))
        try:
            with power_cut(moment):
                write_whole(file, text("new"))
        except PowerCut:
            left.append(file.read_text(encoding="utf-8"))
        else:
            break
    assert left == ["old"] * 3 + ["new"] * 2  # nothing, flushed, readable | replaced, folder flushed


def test_litter_of_a_power_cut_is_gone_after_the_next_write(file):
    with pytest.raises(PowerCut), power_cut(0):
        write_whole(file, text("new"))
    assert len(list(file.parent.iterdir())) == 2
    write_whole(file, text("newer"))
    assert list(file.parent.iterdir()) == [file]
