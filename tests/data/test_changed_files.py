"""Files of a prepared data set that change under a running loader: an error names them, and no garbage is learned."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.data.source import Files, Mapped
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare


@pytest.fixture
def copy(tarred_samples, tmp_path):
    return Path(shutil.copytree(tarred_samples.paths[0].split("/images/")[0], tmp_path / "prepared"))


@pytest.fixture(scope="module")
def several_sizes(make_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("several")
    make_archive(folder / "source" / "D", {"monocyte": 12, "basophil": 12})
    return prepare(PrepareConfig(source=folder / "source", output=folder / "p", pack_sizes=(64, 96))).folder


def batches(folder, source, epochs=2):
    loader = open_dataset(folder).loader("train", source=source, batch_size=4, size=56, threads=1)
    for _ in range(epochs):
        yield from loader


def overwrite(path, begin: int, length: int) -> None:
    with Path(path).open("r+b") as file:
        file.seek(begin)
        file.write(b"\x55" * length)


@pytest.mark.parametrize(("source", "size"), [("packed", 64), ("packed", 96), ("resident", 64)])
def test_a_square_that_was_overwritten_in_place_is_named_and_never_seen(several_sizes, tmp_path, source, size):
    folder = Path(shutil.copytree(several_sizes, tmp_path / "prepared"))
    samples = open_dataset(folder).samples("train")
    row = int(samples.packed.rows[7])
    file = folder / "packed" / f"{size}-00000.npy"
    square = 3 * size * size
    overwrite(file, file.stat().st_size - (24 - row) * square + square // 2, 1)
    seen = 0
    with pytest.raises(HemafastError, match=rf"row {row} of {size}-00000\.npy.* was overwritten") as caught:
        for images, _ in batches(folder, source):
            seen += len(images)
    assert seen < len(samples)
    assert samples.paths[7] in caught.value.problem
    assert "hemafast prepare" in caught.value.remedy


def cut(path):
    os.truncate(path, 200)


def spoil(path):
    """Another content of the same length."""
    overwrite(path, 30, path.stat().st_size - 30)


def become_another_image(path):
    """An image that DALI reads without complaint, of the same length."""
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def become_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def become_a_link(path):
    other = next(one for one in sorted(path.parent.iterdir()) if one != path)
    path.unlink()
    path.symlink_to(other)


CHANGES = [cut, Path.unlink, spoil, become_another_image, become_a_pipe, become_a_link]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("read_before", [0, 1, 20])
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_files_are_read_is_named(copy, change, read_before):
    path = Path(open_dataset(copy).samples("train").paths[5])
    reading = batches(copy, "files", epochs=4)
    for _ in range(read_before):  # 20: all files were read
        next(reading)
    change(path)
    with pytest.raises(HemafastError) as caught:
        list(reading)
    assert caught.value.problem.startswith(str(path))
    assert "--resume" in caught.value.remedy


def test_a_member_of_a_tar_that_was_overwritten_is_named(copy):
    members = open_dataset(copy).samples("train").members()
    path, begin, size = members.place(5)
    overwrite(path, begin + size - 3, 1)
    with pytest.raises(HemafastError) as caught:
        list(batches(copy, "webdataset"))
    assert caught.value.problem.startswith(f"{path}, bytes {begin} to {begin + size}, was overwritten")


def test_a_file_is_hashed_once_and_again_if_it_was_written_to(copy, monkeypatch):
    samples, hashed = open_dataset(copy).samples("train"), []
    monkeypatch.setattr("hemafast.data.source.read_image", lambda path, _: hashed.append(str(path)))
    source = Files(samples, 1)
    for rows in ([2, 9, 2], [9, 2], [1, 2]):
        source(np.array(rows))
    assert hashed == [samples.paths[row] for row in (2, 9, 1)]
    path = Path(samples.paths[9])
    path.write_bytes(path.read_bytes())
    source(np.array([2, 9]))
    assert hashed[3:] == [str(path)]


def test_each_square_is_hashed_once(train_samples, monkeypatch):
    hashed = []

    class Counted(type(train_samples)):
        def refuse_changed(self, row):
            hashed.append(row)

    own = Counted(**{name: getattr(train_samples, name) for name in train_samples.__slots__})
    source = Mapped(own)
    for rows in ([2, 9, 2], [9, 2], [1, 2]):
        source(np.array(rows))
    assert hashed == [2, 9, 1]
