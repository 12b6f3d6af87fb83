"""`hemafast verify` names every file of a prepared data set that is not what it was."""

import random
import shutil
from pathlib import Path

import pytest
from recorder import Recorder

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.reader import read_prepared
from hemafast.preparation.verify import verify


@pytest.fixture(scope="module")
def sound(tmp_path_factory, make_archive, draw, encode) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    twin = encode(draw(500))
    extra = {"basophil/bad.png": b"bad", "basophil/twin.png": twin, "monocyte/twin.png": twin}
    make_archive(folder / "A.zip", {"basophil": 8, "monocyte": 8}, extra=extra)
    config = PrepareConfig(
        source=folder,
        output=folder / "prepared",
        pack_sizes=(64, 32),
        shards=2,
        folds=2,
        format="webdataset",
        max_quarantined=1,
    )
    return prepare(config).folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return shutil.copytree(sound, tmp_path / "copy")


def _problems(folder: Path) -> list[str]:
    """The files with problems; an unreadable dataset.json is named by the error."""
    try:
        return [problem.file for problem in verify(folder).problems]
    except HemafastError as error:
        return [error.problem]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_a_sound_data_set_has_no_problems(sound):
    heard = Recorder()
    found = verify(sound, progress=heard)
    assert (found.images, found.problems) == (19, ())
    assert [(stage.what, stage.total, stage.done[-1]) for stage in heard.stages] == [
        ("hashing files", found.files, found.files),
        ("hashing images", 19, 19),
    ]


def test_a_flipped_bit_is_noticed_in_every_file(folder):
    generator = random.Random(1)
    for path in _files(folder):
        before = path.read_bytes()
        for _ in range(3):
            at = generator.randrange(len(before))
            path.write_bytes(before[:at] + bytes([before[at] ^ (1 << generator.randrange(8))]) + before[at + 1 :])
            found = _problems(folder)
            assert found, (path, at)
            if path.name.endswith("-00000.npy") and at >= 128:
                assert all(name.startswith(("images/", "quarantined/")) for name in found)  # whose pixels these are
            else:
                assert path.relative_to(folder).as_posix() in found[0]
        path.write_bytes(before)
    assert not _problems(folder)


@pytest.mark.parametrize("bit", [0, 6])
def test_every_byte_of_a_header_is_compared(folder, bit):
    path = folder / "packed" / "32-00000.npy"
    before = path.read_bytes()
    for at in range(128):
        path.write_bytes(before[:at] + bytes([before[at] ^ (1 << bit)]) + before[at + 1 :])
        assert _problems(folder)[0] == "packed/32-00000.npy"
        with pytest.raises(HemafastError, match="cut or changed"):
            read_prepared(folder)


def test_every_packed_pixel_is_hashed(folder):
    path = folder / "packed" / "32-00000.npy"
    before, square = path.read_bytes(), 32 * 32 * 3
    for row in range(19):  # the quarantined ones too
        at = 128 + row * square + (row * 997) % square
        path.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
        assert len(_problems(folder)) == 1


@pytest.mark.parametrize("part", ["images", "quarantined", "shards", "packed", "webdataset", "split.csv"])
def test_a_missing_a_cut_and_a_longer_file_are_noticed(folder, part):
    path = _files(folder / part)[0] if (folder / part).is_dir() else folder / part
    before = path.read_bytes()
    for content in (None, before[:-1], before + b"x"):
        path.unlink() if content is None else path.write_bytes(content)
        assert any(path.name in name or part == "packed" for name in _problems(folder))
        path.write_bytes(before)


def test_a_file_that_does_not_belong_there_is_noticed(folder):
    (folder / "images" / "A" / "extra.png").write_bytes(b"x")
    assert _problems(folder) == ["images/A/extra.png"]


def test_a_link_to_the_same_bytes_is_noticed(folder, tmp_path):
    path = next((folder / "images").rglob("*.png"))
    path.rename(tmp_path / "elsewhere.png")
    path.symlink_to(tmp_path / "elsewhere.png")
    assert _problems(folder) == [path.relative_to(folder).as_posix()]


def test_what_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(HemafastError, match="not a prepared data set"):
        verify(tmp_path)
