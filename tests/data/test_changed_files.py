"""Files of a prepared data set that change under a running loader: an error names them, and no garbage is learned."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.data.source import Mapped
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


def batches(folder, source):
    loader = open_dataset(folder).loader("train", source=source, batch_size=4, size=56, threads=1)
    yield from loader
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


@pytest.mark.parametrize("change", [cut, Path.unlink, spoil])
def test_a_file_that_changes_while_files_are_read_is_named(copy, change):
    path = Path(open_dataset(copy).samples("train").paths[5])
    reading = batches(copy, "files")
    next(reading)
    change(path)
    with pytest.raises(HemafastError) as caught:
        list(reading)
    assert caught.value.problem.startswith(str(path))
    assert "--resume" in caught.value.remedy


def test_a_member_of_a_tar_that_was_overwritten_is_named(copy):
    members = open_dataset(copy).samples("train").members()
    path, begin, size = members.place(5)
    reading = batches(copy, "webdataset")
    next(reading)
    overwrite(path, begin, size)
    with pytest.raises(HemafastError) as caught:
        list(reading)
    assert caught.value.problem.startswith(f"{path}, bytes {begin} to {begin + size}, was overwritten")


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
