"""Parts of a preparation: joined, they are the undivided one, whatever happened to them on the way."""

import json
import os
import shutil
import signal
from pathlib import Path

import forked
import pytest
from recorder import Recorder
from trees import tree

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation import parts, pixels
from hemafast.preparation.build import join, plan_preparation, prepare, prepare_part
from hemafast.preparation.parts import Part, parse_part
from hemafast.preparation.verify import verify

COUNTS = {"basophil": 60, "monocyte": 62}
OF = 3


def _config(source: Path, output: Path, **options) -> PrepareConfig:
    given = {"source": source, "output": output, "pack_sizes": (64, 32), "max_quarantined": 1.0, **options}
    return PrepareConfig(**given)


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_archive, draw, encode) -> Path:
    """Two archives with a damaged image and a contradiction, which only a join can see."""
    folder = tmp_path_factory.mktemp("parts")
    twin = encode(draw(10_000))
    extra = {"basophil/twin.png": twin, "monocyte/twin.png": twin, "basophil/bad.png": b"bad"}
    make_archive(folder / "A.zip", COUNTS, kind="JPEG", extra=extra)
    make_archive(folder / "B.zip", {"basophil": 9, "myeloblast": 8}, kind="TIFF", seed=3)
    return folder


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory) -> dict[str, str]:
    return tree(prepare(_config(source, tmp_path_factory.mktemp("whole") / "prepared")).folder)


def _read(config: PrepareConfig, *numbers: int, of: int = OF) -> list[Path]:
    return [prepare_part(config, Part(number, of), workers=2).folder for number in numbers]


@pytest.fixture(scope="module")
def read_once(source, tmp_path_factory) -> Path:
    """A folder with all parts, to be copied."""
    folder = tmp_path_factory.mktemp("read")
    _read(_config(source, folder / "prepared"), 1, 2, 3)
    return folder


@pytest.fixture
def config(source, read_once, tmp_path) -> PrepareConfig:
    """Settings whose parts are all read."""
    shutil.copytree(read_once, tmp_path / "copy")
    return _config(source, tmp_path / "copy" / "prepared")


def _part(config: PrepareConfig, number: int) -> Path:
    (folder,) = (path for path in config.output.parent.glob(f".prepared-part-{number}-of-*") if path.is_dir())
    return folder


def test_every_row_is_in_one_part():
    for images, of in ((100, 7), (3, 8), (1, 1), (0, 2)):
        rows = [row for number in range(1, of + 1) for row in Part(number, of).rows(images)]
        assert rows == list(range(images))


@pytest.mark.parametrize("text", ["0/8", "9/8", "3", "3/0", "-1/8", "a/b", "3/8/9", "1/10001", ""])
def test_what_is_no_part_is_refused(text):
    with pytest.raises(HemafastError, match="NUMBER/PARTS"):
        parse_part(text)


def test_joined_parts_are_the_undivided_data_set_bit_for_bit(config, whole):
    assert join(config).fresh
    assert tree(config.output) == whole
    assert not verify(config.output).problems
    assert {path.name for path in config.output.parent.iterdir()} == {"prepared", ".prepared.lock"}


def test_the_squares_of_parts_may_lie_across_the_files_of_the_whole(source, tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "MAX_PACKED_BYTES", 3 * 64 * 64 * 25)
    undivided = _config(source, tmp_path / "a" / "prepared")
    divided = _config(source, tmp_path / "b" / "prepared")
    _read(divided, 2, 1, of=2)
    assert tree(join(divided).folder) == tree(prepare(undivided).folder)


def test_parts_that_die_go_on_where_they_were(source, tmp_path, whole):
    config = _config(source, tmp_path / "prepared")
    for number in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            prepare_part(config, Part(number, 2), progress=Recorder("reading images", 32), workers=2)
    with pytest.raises(HemafastError, match="are parts 1/2"):
        join(config)
    heard = Recorder()
    prepare_part(config, Part(1, 2), progress=heard, workers=2)
    assert heard.stage("reading images").done[0] >= 30
    with pytest.raises(HemafastError, match="part 2/2"):
        join(config)
    _read(config, 2, of=2)
    assert tree(join(config).folder) == whole


class Killed(BaseException):
    """Raised by nobody: who makes it is dead."""

    def __init__(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def _read_or_join(config: PrepareConfig, part: Part | None, stage: str, after: int) -> None:
    """In a process of its own: read a part, or join all, and be killed in a stage."""
    killer = Recorder(stage, after, Killed)
    if part is None:
        join(config, progress=killer, workers=2)
    else:
        prepare_part(config, part, progress=killer, workers=2)


@pytest.mark.slow
def test_parts_and_a_join_that_are_killed_go_on_and_nothing_is_lost(source, tmp_path, whole):
    config = _config(source, tmp_path / "prepared")
    for part, stage, after in (
        (Part(1, 2), "reading images", 32),
        (Part(2, 2), "reading images", 1),
        (None, "joining parts", 60),
        (None, "writing to disk", 0),
    ):
        if part is None:
            _read(config, 1, 2, of=2)
        process = forked.context().Process(target=_read_or_join, args=(config, part, stage, after))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not config.output.exists()
    assert tree(join(config).folder) == whole
    assert {path.name for path in tmp_path.iterdir()} == {"prepared", ".prepared.lock"}


def test_a_part_that_is_finished_is_not_read_again(config):
    heard = Recorder()
    assert not prepare_part(config, Part(2, OF), progress=heard).fresh
    assert "reading images" not in {stage.what for stage in heard.stages}


@pytest.mark.parametrize("what", ["joining parts", "finding duplicates", "writing to disk"])
def test_a_join_that_dies_is_begun_again(config, whole, what):
    with pytest.raises(KeyboardInterrupt):
        join(config, progress=Recorder(what))
    assert tree(join(config).folder) == whole


def test_an_undivided_call_after_a_join_that_died_reads_all(config, whole):
    with pytest.raises(KeyboardInterrupt):
        join(config, progress=Recorder("joining parts"))
    assert tree(prepare(config).folder) == whole


def test_a_second_join_changes_nothing(config):
    join(config)
    assert not join(config).fresh
    assert not prepare_part(config, Part(1, OF)).fresh


def test_parts_can_be_joined_with_another_split(config, source, tmp_path):
    other = _config(source, config.output, seed=7)
    expected = tree(prepare(_config(source, tmp_path / "seven" / "prepared", seed=7)).folder)
    assert tree(join(other).folder) == expected


def test_a_missing_part_is_named(config):
    shutil.rmtree(_part(config, 2))
    with pytest.raises(HemafastError, match="2/3") as error:
        join(config)
    assert "--part 2/3" in error.value.remedy
    assert not config.output.exists()


def test_without_parts_there_is_nothing_to_join(source, tmp_path):
    with pytest.raises(HemafastError, match="no part"):
        join(_config(source, tmp_path / "prepared"))


def test_parts_of_other_settings_are_refused(config, source):
    with pytest.raises(HemafastError, match="other settings"):
        join(_config(source, config.output, field_of_view="whole"))


def test_parts_of_other_files_are_refused(config, source, tmp_path, make_archive):
    shutil.copytree(source, tmp_path / "more")
    make_archive(tmp_path / "more" / "C.zip", {"basophil": 4}, kind="JPEG", seed=9)
    with pytest.raises(HemafastError, match="other files"):
        join(_config(tmp_path / "more", config.output))


def test_a_part_that_found_other_scales_is_refused(config):
    mark = _part(config, 1) / "part.json"
    said = json.loads(mark.read_text())
    mark.write_text(json.dumps(said | {"measured": "0" * 64}))
    with pytest.raises(HemafastError, match="other scales"):
        join(config)


def _change_square(folder: Path) -> None:
    path = folder / "packed" / "32-00000.npy"
    content = bytearray(path.read_bytes())
    content[128 + 5 * 3 * 32 * 32 + 100] ^= 1
    path.write_bytes(content)


def _cut(folder: Path) -> None:
    path = next((folder / "images").rglob("*.jpg"))
    path.write_bytes(path.read_bytes()[:-1])


def _lead_out(folder: Path) -> None:
    log = folder.with_name(f"{folder.name}.jsonl")
    log.write_text(log.read_text().replace('"path": "images/A/', '"path": "images/../../A/'))


def _tear(folder: Path) -> None:
    log = folder.with_name(f"{folder.name}.jsonl")
    log.write_bytes(log.read_bytes()[:-30])


DAMAGE = {
    "a changed square": _change_square,
    "a cut image": _cut,
    "a lost image": lambda folder: next((folder / "images").rglob("*.jpg")).unlink(),
    "a link": lambda folder: _to_link(next((folder / "images").rglob("*.jpg"))),
    "a path that leads out": _lead_out,
    "a torn log": _tear,
    "no log": lambda folder: folder.with_name(f"{folder.name}.jsonl").unlink(),
    "no squares": lambda folder: shutil.rmtree(folder / "packed"),
    "cut squares": lambda folder: os.truncate(folder / "packed" / "32-00000.npy", 500),
}


def _to_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_part_is_named(config, damage):
    damage(_part(config, 2))
    with pytest.raises(HemafastError, match="part-2-of-3") as error:
        join(config)
    assert "Delete this folder" in error.value.remedy
    assert not config.output.exists()


def test_a_part_whose_folder_was_deleted_is_read_again(config, whole):
    shutil.rmtree(_part(config, 2))
    _read(config, 2)
    assert tree(join(config).folder) == whole


def test_files_are_copied_where_they_cannot_be_linked(config, whole, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(parts.os, "link", refuse)
    assert tree(join(config).folder) == whole


def test_two_processes_cannot_read_the_same_part(source, tmp_path):
    from hemafast.preparation.publish import kept_beside

    config = _config(source, tmp_path / "prepared")
    key = plan_preparation(config).ingest_key
    with kept_beside(Part(1, 2).folder(config.output, key)), pytest.raises(HemafastError, match="Another hemafast"):
        _read(config, 1, of=2)


def test_parts_in_the_source_are_not_taken_for_archives(source, tmp_path, whole):
    shutil.copytree(source, tmp_path / "in")
    for path in (tmp_path / "in").iterdir():
        shutil.copystat(source / path.name, path)
    config = _config(tmp_path / "in", tmp_path / "in" / "prepared")
    _read(config, 1, of=2)
    _read(config, 2, of=2)
    assert tree(join(config).folder) == whole
