"""A folder appears whole or not at all; one process writes at a time; a full disk is an error and loses nothing."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from trees import tree

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation import publish
from hemafast.preparation.build import prepare
from hemafast.preparation.publish import log_of, published_whole, recover

MARKER = "dataset.json"
KEY, OTHER_KEY = "0123456789abcdef", "f" * 16


@pytest.fixture(autouse=True)
def _marked(monkeypatch) -> None:
    """A folder with the marker passes for a prepared data set."""
    monkeypatch.setattr(publish, "is_prepared", lambda folder: (folder / MARKER).is_file())


@pytest.fixture
def target(tmp_path) -> Path:
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / MARKER).write_text("old")
    return folder


def _publish(target: Path, text: str, key: str = KEY) -> None:
    with published_whole(target, key) as folder:
        (folder / MARKER).write_text(text)


def _left(target: Path) -> set[str]:
    return {path.name for path in target.parent.iterdir()} - {".prepared.lock"}


@pytest.mark.parametrize("exchange", [True, False])
def test_a_new_folder_takes_the_place_of_the_old_one(target, monkeypatch, exchange):
    if not exchange:  # as on file systems that cannot
        monkeypatch.setattr(publish, "_exchanged", lambda first, second: False)
    _publish(target, "new")
    assert (target / MARKER).read_text() == "new"
    assert _left(target) == {"prepared"}


def test_two_folders_change_places_in_one_step_here(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    assert publish._exchanged(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "file").read_text() == "b"


def test_a_kill_between_two_renames_loses_neither(target):
    target.rename(target.with_name(".prepared-old"))
    recover(target)
    assert (target / MARKER).read_text() == "old"
    assert _left(target) == {"prepared"}


def test_publishing_itself_puts_back_what_a_kill_left_aside(target):
    target.rename(target.with_name(".prepared-old"))
    with pytest.raises(HemafastError), published_whole(target, KEY):
        raise HemafastError("mend", "this")
    assert (target / MARKER).read_text() == "old"


def test_a_kill_before_the_old_folder_was_deleted_leaves_the_new_one(target):
    shutil.copytree(target, target.with_name(".prepared-old"))
    (target / MARKER).write_text("new")
    recover(target)
    assert (target / MARKER).read_text() == "new"
    assert _left(target) == {"prepared"}


def test_nothing_is_tidied_up_while_another_process_writes(target):
    old = target.with_name(".prepared-old")
    with published_whole(target, KEY) as folder:
        old.mkdir()
        recover(target)
        assert old.exists()
        (folder / MARKER).write_text("new")
    assert _left(target) == {"prepared"}


def test_a_kill_while_folders_change_places_mixes_nothing(target, monkeypatch):
    """The older data set lies under the name of the work then; it must not be taken for work."""
    with published_whole(target, KEY) as folder:
        log_of(folder).write_text("verified")
        (folder / MARKER).write_text("new")
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", _interrupt)
            publish.sync(folder)
            log_of(folder).unlink()
            publish._swap(folder, target)
        assert (folder / MARKER).read_text() == "old"
        assert (target / MARKER).read_text() == "new"
        folder.rename(folder.with_name("kept"))  # what a kill would leave
        folder.mkdir()
        (folder / MARKER).write_text("newer")
    target.with_name("kept").rename(target.with_name(f".prepared-new-{KEY}"))
    with published_whole(target, KEY) as folder:
        assert not list(folder.iterdir())
        (folder / MARKER).write_text("newest")
    assert (target / MARKER).read_text() == "newest"
    assert _left(target) == {"prepared"}


def _interrupt(*arguments):
    raise KeyboardInterrupt


def test_an_interrupted_folder_is_gone_on_with_under_the_same_key_only(target):
    with pytest.raises(KeyboardInterrupt), published_whole(target, KEY) as folder:
        (folder / "half").write_text("x")
        log_of(folder).write_text("half is done")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), published_whole(target, KEY) as folder:
        assert (folder / "half").exists()
        raise KeyboardInterrupt
    with published_whole(target, OTHER_KEY) as folder:
        assert not list(folder.iterdir())
        (folder / MARKER).write_text("new")
    assert _left(target) == {"prepared"}


@pytest.mark.parametrize("error", [HemafastError("a", "b"), OSError(errno.EACCES, "no")])
def test_an_error_leaves_the_old_folder_and_nothing_else(target, error):
    with pytest.raises(HemafastError), published_whole(target, KEY):
        raise error
    assert (target / MARKER).read_text() == "old"
    assert _left(target) == {"prepared"}


def test_a_folder_that_was_not_written_by_us_is_not_replaced(tmp_path):
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "thesis.tex").write_text("x")
    with pytest.raises(HemafastError, match="not written by hemafast"):
        _publish(tmp_path / "prepared", "new")


def test_a_second_process_is_told_who_is_writing(target):
    with published_whole(target, KEY) as folder:
        with pytest.raises(HemafastError, match=rf"process {os.getpid()}\) is writing"):
            _publish(target, "other")
        (folder / MARKER).write_text("new")
    assert (target / MARKER).read_text() == "new"


def test_the_lock_of_a_killed_process_does_not_block(target):
    script = (
        "import sys, time; from pathlib import Path\n"
        "from hemafast.preparation import publish\n"
        "publish.is_prepared = lambda folder: True\n"
        "with publish.published_whole(Path(sys.argv[1]), '0' * 16):\n"
        "    print('in', flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(target)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        with pytest.raises(HemafastError, match=f"process {process.pid}"):
            _publish(target, "new")
        process.send_signal(signal.SIGKILL)
    _publish(target, "new")
    assert (target / MARKER).read_text() == "new"


# A full disk


@pytest.fixture
def source(tmp_path, make_archive) -> Path:
    make_archive(tmp_path / "source" / "A.zip", {"basophil": 70, "monocyte": 5})
    return tmp_path / "source"


def _prepare(source: Path, **options):
    return prepare(PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), **options))


def test_too_little_room_is_said_before_anything_is_written(source, monkeypatch):
    before = tree(_prepare(source).folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(HemafastError, match=r"needs \d+ MB, and its disk has 0 MB free"):
        _prepare(source, field_of_view="whole", seed=1, um_per_pixel={"A": 0.2})
    assert tree(source / "prepared") == before


@pytest.mark.parametrize(
    "call", ["os.pwrite", "hemafast.preparation.ingest._keep_bytes", "hemafast.preparation.build.write_manifest"]
)
def test_a_disk_that_fills_up_on_the_way_is_said_and_the_old_set_stays(source, monkeypatch, call):
    before = tree(_prepare(source).folder)

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(call, full)
    with pytest.raises(HemafastError, match=r"disk .* is full") as caught:
        _prepare(source, field_of_view="whole", um_per_pixel={"A": 0.2})
    assert "--output" in caught.value.remedy
    monkeypatch.undo()
    assert tree(source / "prepared") == before
    assert _left(source / "prepared") == {"A.zip", "prepared"}


# The same input, the same bytes


def test_the_result_does_not_depend_on_the_number_of_workers(source, tmp_path):
    trees = []
    for workers in (1, 2, 5):
        output = tmp_path / str(workers)
        prepare(PrepareConfig(source=source, output=output, pack_sizes=(64, 32), format="webdataset"), workers=workers)
        trees.append(tree(output))
    assert trees[0] == trees[1] == trees[2]


def test_a_folder_of_the_same_files_differs_in_its_listing_alone(source, tmp_path, make_archive):
    make_archive(tmp_path / "other" / "A", {"basophil": 70, "monocyte": 5})
    first, second = tree(_prepare(source).folder), tree(_prepare(tmp_path / "other").folder)
    assert {name for name in first if first[name] != second[name]} == {"dataset.json"}
