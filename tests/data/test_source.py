"""Where images come from: copies that lie on a device, and members of tars."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hemafast.data.dataset import open_dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.source import copy_squares, open_source
from hemafast.errors import HemafastError
from hemafast.preparation.reader import PackedPixels


def _shape(source):
    return GraphShape("cpu", source, 64, 56, 8, 1)


def test_resident_squares_are_a_tensor_of_their_own(train_samples):
    squares = copy_squares(train_samples, "cpu")
    assert squares.dtype == torch.uint8
    assert squares.shape == (47, 64, 64, 3)
    np.testing.assert_array_equal(squares.numpy(), np.asarray(train_samples.packed))
    squares.zero_()  # a copy: the map cannot be written to
    assert np.asarray(train_samples.packed).any()


def test_a_resident_batch_is_one_gather_in_the_order_of_its_rows(train_samples):
    rows = np.array([40, 2, 2, 11])
    batch = open_source(train_samples, _shape("resident"))(rows)
    assert batch.shape == (4, 64, 64, 3)
    np.testing.assert_array_equal(batch, np.asarray(train_samples.packed)[rows])


def test_squares_of_a_batch_are_views_of_the_files_that_they_lie_in():
    files = tuple(np.random.default_rng(0).integers(0, 256, (4, 2, 2, 3), np.uint8) for _ in range(3))
    packed = PackedPixels(files, 4, np.array([11, 0, 4, 7, 3]), 2)
    rows = np.array([4, 0, 0, 2, 1])
    several = packed.several(rows)
    np.testing.assert_array_equal(several, np.concatenate(files)[[3, 11, 11, 4, 0]])
    np.testing.assert_array_equal(several, [packed[row] for row in rows])
    assert all(any(np.shares_memory(square, file) for file in files) for square in several)


def test_more_squares_than_are_copied_at_once(train_samples, monkeypatch):
    monkeypatch.setattr("hemafast.data.source._COPIED_AT_ONCE", 10)
    np.testing.assert_array_equal(copy_squares(train_samples, "cpu").numpy(), np.asarray(train_samples.packed))


def test_members_are_the_bytes_of_the_files(tarred_samples):
    members = open_source(tarred_samples, _shape("webdataset"))(np.arange(47))
    for path, member in zip(tarred_samples.paths, members, strict=True):
        assert member.tobytes() == Path(path).read_bytes()


def test_a_data_set_without_tars_says_how_to_make_them(train_samples):
    with pytest.raises(HemafastError, match="no tar files") as caught:
        open_source(train_samples, _shape("webdataset"))
    assert "--format webdataset" in caught.value.remedy


@pytest.fixture
def tarred_copy(tarred_samples, tmp_path):
    folder = shutil.copytree(tarred_samples.paths[0].split("/images/")[0], tmp_path / "prepared")
    return folder, sorted((folder / "webdataset").glob("train-*.tar"))


def _cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _turn_around(index):
    head, *lines = index.read_text().splitlines()
    index.write_text("\n".join([head, *reversed(lines)]))


def _swap_offsets(index):
    """Names, sizes and order stay as they are."""
    head, *lines = (line.split(" ") for line in index.read_text().splitlines())
    lines[0][1], lines[1][1] = lines[1][1], lines[0][1]
    index.write_text("\n".join(" ".join(line) for line in [head, *lines]) + "\n")


DAMAGE = {
    "tar cut": _cut,
    "tar gone": lambda tar: tar.unlink(),
    "index cut": lambda tar: _cut(tar.with_suffix(".idx")),
    "index gone": lambda tar: tar.with_suffix(".idx").unlink(),
    "index empty": lambda tar: tar.with_suffix(".idx").write_text(""),
    "index of numbers out of range": lambda tar: tar.with_suffix(".idx").write_text(
        tar.with_suffix(".idx").read_text().replace(" 512 ", " 99999999999 ")
    ),
    "index with two offsets swapped": lambda tar: _swap_offsets(tar.with_suffix(".idx")),
    "index of another order": lambda tar: _turn_around(tar.with_suffix(".idx")),
    "binary": lambda tar: tar.with_suffix(".idx").write_bytes(b"\xff\xfe\x00" * 50),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_tars_are_refused(tarred_copy, damage):
    folder, tars = tarred_copy
    DAMAGE[damage](tars[1])
    samples = open_dataset(folder).samples("train")
    with pytest.raises(HemafastError, match=r"train-00001") as caught:
        open_source(samples, _shape("webdataset"))
    assert "hemafast prepare" in caught.value.remedy


def test_folds_have_tars_of_their_own(make_archive, tmp_path):
    from hemafast.config import PrepareConfig
    from hemafast.preparation.build import prepare

    make_archive(tmp_path / "source" / "Lab.zip", {"monocyte": 6, "basophil": 6})
    settings = PrepareConfig(
        source=tmp_path / "source", output=tmp_path / "prepared", pack_sizes=(64,), folds=3, format="webdataset"
    )
    folder = prepare(settings).folder
    for fold in range(3):
        samples = open_dataset(folder, fold).samples("train")
        assert samples.split == f"fold{fold}-train"
        members = open_source(samples, _shape("webdataset"))(np.arange(len(samples)))
        assert members[-1].tobytes() == Path(samples.paths[-1]).read_bytes()


def test_a_file_that_is_gone_is_named(train_samples, tmp_path):
    from hemafast.data.augment import POLICIES

    gone = replace(train_samples, paths=tuple(str(tmp_path / "none.png") for _ in train_samples.paths))
    with pytest.raises(HemafastError, match=r"none\.png"):
        train_loader(gone, policy=POLICIES["none"], seed=0, shape=_shape("files"))


def test_a_file_that_has_changed_is_named(train_samples, draw, encode, tmp_path):
    small = tmp_path / "small.png"
    small.write_bytes(encode(draw(0, 8, 8)))
    changed = replace(train_samples, paths=(str(small), *train_samples.paths[1:]))
    with pytest.raises(HemafastError, match=r"small\.png is not the file that was prepared"):
        open_source(changed, _shape("files"))
