"""Opening a prepared data set: what it gives, and that damage is noticed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hemafast.data.dataset import choose_pack_size, open_dataset
from hemafast.errors import HemafastError


@pytest.fixture
def copy(prepared, tmp_path) -> Path:
    return shutil.copytree(prepared.folder, tmp_path / "prepared")


def test_samples_are_the_images_of_their_split(dataset):
    train, val = dataset.samples("train"), dataset.samples("val")
    assert len(train) + len(val) == 58
    assert not set(train.paths) & set(val.paths)
    for samples in (train, val):
        folders = [Path(path).parent.name for path in samples.paths]
        assert [dataset.info.classes[label] for label in samples.labels] == folders
        assert list(samples.domains) == [Path(path).parent.parent.name for path in samples.paths]
        assert all(Path(path).is_absolute() and Path(path).is_file() for path in samples.paths)
        assert samples.labels.dtype == np.int64
        assert samples.packed_size == 64
        assert np.asarray(samples.packed).shape == (len(samples), 64, 64, 3)
        assert samples.packed.nbytes == len(samples) * 64 * 64 * 3


def test_it_shows_itself_in_one_line(dataset):
    counts = [len(dataset.samples(name)) for name in ("train", "val")]
    assert repr(dataset).startswith(f"Dataset({str(dataset.folder)!r}, Acevedo_20, Matek_19, 11 classes")
    assert repr(dataset).endswith(f"images: {counts[0]} train, {counts[1]} val)")


def test_packed_pixels_are_a_memory_map_that_cannot_be_written(train_samples):
    assert isinstance(train_samples.packed[0].base.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        train_samples.packed[0][:] = 0


def test_a_data_set_may_be_moved_and_opened_by_a_relative_path(copy, monkeypatch):
    moved = copy.rename(copy.with_name("moved"))
    monkeypatch.chdir(moved.parent)
    assert all(Path(path).is_file() for path in open_dataset(Path("moved")).samples("val").paths)


def _refused(folder: Path, named: str) -> None:
    """Opening `folder` and both its splits fails with an error that names `named` and a remedy."""
    with pytest.raises(HemafastError) as caught:
        dataset = open_dataset(folder)
        for split in ("train", "val"):
            dataset.samples(split)
    assert named in caught.value.problem
    assert "hemafast prepare" in caught.value.remedy


def test_a_missing_data_set_is_refused(tmp_path):
    _refused(tmp_path / "none", str(tmp_path / "none"))


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    _refused(tmp_path, str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "null", '{"schema_version": 1}', "\0" * 200])
def test_a_damaged_description_is_refused(copy, content):
    (copy / "dataset.json").write_text(content)
    _refused(copy, "dataset.json")


@pytest.mark.parametrize("change", [{"schema_version": 2}, {"schema_version": 4}, {"unheard_of": 1}, {"folds": 7}])
def test_a_description_of_another_version_is_refused(copy, change):
    path = copy / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    _refused(copy, "dataset.json")


def _swap_labels(manifest):
    labels = manifest["label"].tolist()
    other = next(n for n, label in enumerate(labels) if label != labels[0])
    labels[0], labels[other] = labels[other], labels[0]
    return manifest.assign(label=labels)


CHANGES = {
    "labels swapped": _swap_labels,
    "split swapped": lambda manifest: manifest.assign(split=manifest["split"].map({"train": "val", "val": "train"})),
    "row left out": lambda manifest: manifest.iloc[1:],
    "row twice": lambda manifest: pd.concat([manifest, manifest.iloc[:1]]),
    "other bytes": lambda manifest: manifest.assign(sha256=manifest["sha256"].str[::-1]),
    "other path": lambda manifest: manifest.assign(path=manifest["path"] + "x"),
    "column left out": lambda manifest: manifest.drop(columns="sha256"),
    "rows in another order": lambda manifest: manifest.iloc[::-1],
    "verdicts": lambda manifest: manifest.assign(verdict=["quarantined", *manifest["verdict"][1:]]),
    "other domain": lambda manifest: manifest.assign(domain=manifest["domain"].str[::-1]),
}


@pytest.mark.parametrize(
    "change",
    [pytest.param(change, id=name) for name, change in CHANGES.items()],
)
def test_a_changed_manifest_is_refused(copy, change):
    path = copy / "manifest.parquet"
    change(pd.read_parquet(path)).to_parquet(path, index=False)
    _refused(copy, "")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_an_unreadable_manifest_is_refused(copy, content):
    path = copy / "manifest.parquet"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    _refused(copy, "manifest.parquet")


PACKED = "packed/64-00000.npy"


@pytest.mark.parametrize("left", [0, 50, 5000])
def test_packed_pixels_cut_short_are_refused(copy, left):
    path = copy / PACKED
    path.write_bytes(path.read_bytes()[:left])
    _refused(copy, path.name)


def test_missing_packed_pixels_are_refused(copy):
    (copy / PACKED).unlink()
    _refused(copy, "64-00000.npy")


CHANGED_PIXELS = {
    "another number of images": lambda pixels: pixels[1:],
    "another type": lambda pixels: pixels.astype(np.float32),
    "objects": lambda pixels: np.array([{"a": 1}], dtype=object),
}


@pytest.mark.parametrize("change", CHANGED_PIXELS.values(), ids=CHANGED_PIXELS)
def test_other_packed_pixels_are_refused(copy, change):
    np.save(copy / PACKED, change(np.load(copy / PACKED)), allow_pickle=True)
    _refused(copy, "64-00000.npy")


@pytest.mark.parametrize(
    ("image_size", "chosen"), [(0, 64), (56, 64), (57, 128), (112, 128), (113, 256), (224, 256), (225, 256), (999, 256)]
)
def test_the_smallest_packed_size_that_need_not_be_scaled_up_is_taken(image_size, chosen):
    assert choose_pack_size((128, 256, 64), image_size) == chosen


def test_some_of_the_packed_pixels_can_be_selected(train_samples):
    rows = np.array([5, 0, 3])
    np.testing.assert_array_equal(train_samples.packed.select(rows), np.asarray(train_samples.packed)[rows])


def test_a_fold_that_does_not_exist_is_refused(prepared):
    with pytest.raises(HemafastError, match="no folds, and no fold 0") as caught:
        open_dataset(prepared.folder, fold=0)
    assert "--folds" in caught.value.remedy


def test_a_data_set_can_be_cut_down_to_some_domains(prepared, dataset):
    cut = open_dataset(prepared.folder, domains=("Matek_19",))
    for split in ("train", "val"):
        whole, samples = dataset.samples(split), cut.samples(split)
        rows = np.flatnonzero(whole.domains == "Matek_19")
        assert set(samples.domains) == {"Matek_19"}
        assert tuple(samples.paths) == tuple(whole.paths[row] for row in rows)
        assert np.array_equal(np.asarray(samples.packed), np.asarray(whole.packed.select(rows)))
        assert cut.counts(split).sum() == len(samples) < len(whole)


def test_members_of_tars_follow_the_domains(tarred_samples):
    folder = Path(tarred_samples.paths[0]).parents[3]
    cut = open_dataset(folder, domains=("Matek_19",)).samples("train").members()
    chosen = tarred_samples.members().select(np.flatnonzero(tarred_samples.domains == "Matek_19"))
    assert (cut.paths, cut.offsets.tolist()) == (chosen.paths, chosen.offsets.tolist())


def test_a_domain_that_does_not_exist_is_refused(prepared):
    with pytest.raises(HemafastError, match=r"no domain MyLab.*Acevedo_20, Matek_19"):
        open_dataset(prepared.folder, domains=("Matek_19", "MyLab"))
