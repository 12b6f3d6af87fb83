"""Preparing from start to end: what is written, what is refused, and what is left behind."""

import hashlib
import json
import shutil
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from packs import originals
from recorder import Recorder

from hemafast.config import PrepareConfig
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError
from hemafast.preparation import pixels
from hemafast.preparation.build import prepare
from hemafast.preparation.images.image_checks import decode_reference
from hemafast.preparation.pixels import SquareCutter, centre_windows
from hemafast.preparation.reader import read_prepared
from hemafast.preparation.schema import MANIFEST_COLUMNS, SCHEMA
from hemafast.preparation.verify import verify
from hemafast.taxonomy import CHALLENGE_CLASSES

COUNTS = {"basophil": 5, "monocyte": 4}


def _prepare(source: Path, **options):
    return prepare(PrepareConfig(**{"source": source, "output": source / "prepared", "pack_sizes": (64,), **options}))


def _manifest(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "manifest.parquet")


def _snapshot(folder: Path) -> dict:
    """Every file below `folder`, with what changes when it is written anew."""
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_ino, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def left_in(folder: Path) -> set[str]:
    """What lies in a folder, but for the lock."""
    return {path.name for path in folder.iterdir()} - {".prepared.lock"}


@pytest.fixture
def source(tmp_path, make_archive):
    make_archive(tmp_path / "source" / "Matek_19.zip", COUNTS, kind="PNG")
    return tmp_path / "source"


# What is written


def test_the_manifest_has_the_columns_of_the_schema(prepared):
    manifest = _manifest(prepared.folder)
    assert list(manifest.columns) == list(MANIFEST_COLUMNS)
    assert manifest.dtypes.astype(str).to_dict() == MANIFEST_COLUMNS


def test_every_image_of_the_archives_is_in_the_manifest_with_its_header(prepared):
    source = prepared.folder.parent
    names = {f"images/{n}" for zipped in ("Acevedo_20.zip", "Matek_19.zip") for n in originals(source / zipped)}
    manifest = _manifest(prepared.folder)
    assert set(manifest["path"]) == names
    assert len(manifest) == 58
    shapes = manifest.groupby("domain")[["width", "height", "mode"]].agg(set).to_dict("index")
    assert shapes == {
        "Acevedo_20": {"width": {76}, "height": {72}, "mode": {"RGB"}},
        "Matek_19": {"width": {64}, "height": {80}, "mode": {"RGB"}},
    }


def test_the_original_bytes_are_kept(prepared):
    source = prepared.folder.parent
    manifest = _manifest(prepared.folder).set_index("path")
    for zipped in ("Acevedo_20.zip", "Matek_19.zip"):
        for name, data in originals(source / zipped).items():
            row = manifest.loc[f"images/{name}"]
            assert (prepared.folder / f"images/{name}").read_bytes() == data
            assert (row["sha256"], row["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


@pytest.mark.parametrize("split", ["train", "val"])
def test_shards_in_turn_are_the_manifest_with_its_labels(prepared, split):
    lists = sorted(prepared.folder.glob(f"shards/{split}-*.txt"))
    assert [path.name for path in lists] == [f"{split}-{n:05d}-of-00003.txt" for n in range(3)]
    parts = [path.read_text().splitlines() for path in lists]
    lengths = [len(part) for part in parts]
    assert max(lengths) - min(lengths) <= 1
    manifest = _manifest(prepared.folder)
    images = manifest[manifest["split"] == split]
    expected = [
        f"{path} {CHALLENGE_CLASSES.index(label)}" for path, label in zip(images["path"], images["label"], strict=True)
    ]
    assert list(chain.from_iterable(parts)) == expected


def decoded(folder: Path, manifest: pd.DataFrame) -> np.ndarray:
    """The squares of some images, decoded anew from their files."""
    windows = centre_windows(*(manifest[name] for name in ("width", "height", "window")))
    pixels = [decode_reference((folder / path).read_bytes()) for path in manifest["path"]]
    return np.stack([square for (square,) in SquareCutter((64,), 64, 1).cut(pixels, windows)])


def test_packed_rows_are_the_decoded_files_in_the_order_of_the_manifest(prepared):
    packed = np.load(prepared.folder / "packed" / "64-00000.npy")
    manifest = _manifest(prepared.folder)
    fresh = decoded(prepared.folder, manifest)
    np.testing.assert_array_equal(packed, fresh)
    means = manifest[["mean_red", "mean_green", "mean_blue"]].to_numpy()
    np.testing.assert_allclose(means, fresh.mean(axis=(1, 2)), atol=3)


def test_the_description_counts_what_is_there(prepared):
    info = prepared.info
    assert prepared.fresh
    assert info.schema_version == SCHEMA
    assert info.classes == CHALLENGE_CLASSES
    assert {name: domain.um_per_pixel for name, domain in info.domains.items()} == {
        "Acevedo_20": 0.100,
        "Matek_19": 0.0725,
    }
    assert {name: domain.images for name, domain in info.domains.items()} == {"Acevedo_20": 28, "Matek_19": 30}
    manifest = _manifest(prepared.folder)
    for (split, domain, label), count in manifest.groupby(["split", "domain", "label"]).size().items():
        assert info.counts[split][domain][label] == count
    assert sum(n for split in info.counts.values() for domain in split.values() for n in domain.values()) == 58
    assert read_prepared(prepared.folder).info == info


def test_nothing_else_is_left_in_the_prepared_data_set(prepared):
    assert {path.name for path in prepared.folder.iterdir()} == {
        "dataset.json",
        "manifest.parquet",
        "images",
        "packed",
        "quarantine.csv",
        "shards",
        "split.csv",
    }
    assert [path.name for path in prepared.folder.parent.iterdir() if path.name.startswith(".")] == [".prepared.lock"]


def test_an_unknown_domain_has_no_scale_and_a_drawn_one_says_so(tmp_path, make_archive):
    make_archive(tmp_path / "Elsewhere", COUNTS, extra={"DRAWN.txt": b"drawn", "notes.md": b"x"})
    make_archive(tmp_path / "Matek_19.zip", COUNTS, seed=1)
    info = _prepare(tmp_path, um_per_pixel={"Elsewhere": "unknown"}).info
    elsewhere, matek = info.domains["Elsewhere"], info.domains["Matek_19"]
    assert (elsewhere.um_per_pixel, elsewhere.drawn) == (None, True)
    assert (matek.um_per_pixel, matek.drawn) == (0.0725, False)
    assert info.drawn


def test_nothing_is_drawn_unless_marked(prepared):
    assert not prepared.info.drawn


def test_a_folder_prepares_to_the_same_pixels_as_its_zip(tmp_path, make_archive):
    folders = []
    for kind, name in (("zip", "D.zip"), ("folder", "D")):
        make_archive(tmp_path / kind / name, COUNTS)
        folders.append(_prepare(tmp_path / kind).folder)
    first, second = (open_dataset(folder) for folder in folders)
    assert first.info.fingerprint == second.info.fingerprint
    for split in ("train", "val"):
        np.testing.assert_array_equal(np.asarray(first.samples(split).packed), np.asarray(second.samples(split).packed))


def test_two_preparations_of_the_same_archives_are_the_same(source, tmp_path):
    first = _prepare(source, output=tmp_path / "one")
    second = _prepare(source, output=tmp_path / "two")
    assert first.info.fingerprint == second.info.fingerprint
    pd.testing.assert_frame_equal(_manifest(first.folder), _manifest(second.folder))


def test_more_shards_than_images_leave_some_empty(source):
    folder = _prepare(source, shards=20).folder
    assert len(list(folder.glob("shards/train-*-of-00020.txt"))) == 20


def test_a_class_with_one_image_only_trains(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {"basophil": 1, "monocyte": 4})
    prepared = _prepare(tmp_path)
    assert prepared.info.counts == {"train": {"D": {"basophil": 1, "monocyte": 3}}, "val": {"D": {"monocyte": 1}}}


def test_data_that_leaves_nothing_to_validate_on_is_refused(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {"basophil": 1, "monocyte": 1})
    with pytest.raises(HemafastError, match="too few images"):
        _prepare(tmp_path)
    assert left_in(tmp_path) == {"D.zip"}


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, make_archive):
    """Peak resident memory of whole processes, mapped pages included, at 40 and 1,240 images of 256 px packed."""
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from hemafast.config import PrepareConfig\n"
        "from hemafast.preparation.build import prepare\n"
        "prepare(PrepareConfig(source=Path(sys.argv[1]), output=Path(sys.argv[1], 'prepared')))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)\n"
    )
    peaks = []
    for name, more in (("few", 0), ("many", 1200)):
        make_archive(tmp_path / name / "D.zip", {"basophil": 20, "monocyte": 20 + more}, size=(32, 32))
        command = [sys.executable, "-c", script, str(tmp_path / name)]
        peaks.append(int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]))
    packed = 1200 * 3 * 256 * 256 // 2**20
    assert packed > 200
    assert peaks[1] - peaks[0] < packed / 3


def test_pixels_are_cut_into_files_of_bounded_size(tmp_path, make_archive, monkeypatch):
    make_archive(tmp_path / "D.zip", COUNTS)
    whole = _prepare(tmp_path, output=tmp_path / "whole").files.packed[64]
    monkeypatch.setattr(pixels, "MAX_PACKED_BYTES", 4 * 3 * 64**2 + 100)
    prepared = _prepare(tmp_path, output=tmp_path / "cut")
    assert [np.load(path).shape[0] for path in sorted((prepared.folder / "packed").iterdir())] == [4, 4, 1]
    np.testing.assert_array_equal(np.asarray(prepared.files.packed[64]), np.asarray(whole))
    assert verify(prepared.folder).problems == ()
    dataset = open_dataset(prepared.folder)
    for split in ("train", "val"):  # which take squares from all of the files
        np.testing.assert_array_equal(
            np.asarray(dataset.samples(split).packed),
            np.asarray(open_dataset(tmp_path / "whole").samples(split).packed),
        )


def test_training_maps_the_pixels_instead_of_reading_them(prepared):
    assert isinstance(open_dataset(prepared.folder).samples("train").packed[0].base.base, np.memmap)


# Duplicates and contradictions


def test_duplicates_stay_on_one_side(tmp_path, make_archive, draw, encode):
    same = encode(draw(99))
    extra = {f"basophil/copy_{n}.png": same for n in range(6)}
    make_archive(tmp_path / "A.zip", COUNTS, extra=extra)
    make_archive(tmp_path / "B.zip", COUNTS, seed=1, extra=extra)
    manifest = _manifest(_prepare(tmp_path, val_fraction=0.5).folder)
    copies = manifest[manifest["path"].str.contains("copy_")]
    assert len(copies) == 12
    assert copies["group"].nunique() == copies["split"].nunique() == 1


def test_one_image_under_two_labels_is_quarantined(tmp_path, make_archive, draw, encode):
    same = encode(draw(99))
    make_archive(tmp_path / "A.zip", COUNTS, extra={"basophil/x.png": same})
    make_archive(tmp_path / "B.zip", COUNTS, seed=1, extra={"monocyte/y.png": same})
    prepared = _prepare(tmp_path, max_quarantined=1)
    manifest = _manifest(prepared.folder)
    left = manifest[manifest["verdict"] == "quarantined"].set_index("path")
    assert sorted(left.index) == ["quarantined/A/basophil/x.png", "quarantined/B/monocyte/y.png"]
    assert set(left["split"]) == {""}
    assert "B/monocyte/y.png" in left.loc["quarantined/A/basophil/x.png", "reason"]
    assert "A/basophil/x.png" in left.loc["quarantined/B/monocyte/y.png", "reason"]
    for path in left.index:
        assert (prepared.folder / path).read_bytes() == same
        assert not (prepared.folder / path.replace("quarantined", "images", 1)).exists()
    assert {name: domain.quarantined for name, domain in prepared.info.domains.items()} == {"A": 1, "B": 1}
    assert len(open_dataset(prepared.folder).samples("train")) + len(open_dataset(prepared.folder).samples("val")) == 18


# Images that cannot be read


def _bad_archive(kind: str, folder: Path, make_archive) -> Path:
    """An archive with one image, basophil/bad.png, that cannot be read."""
    name = {"a zip": "D.zip", "a folder": "D"}[kind]
    return make_archive(folder / name, COUNTS, extra={"basophil/bad.png": b"garbage" * 100})


KINDS = ["a zip", "a folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_too_many_unreadable_images_stop_it_and_nothing_is_left(tmp_path, make_archive, kind):
    _bad_archive(kind, tmp_path, make_archive)
    with pytest.raises(HemafastError) as caught:
        _prepare(tmp_path)
    assert "1 of 10 images" in caught.value.problem
    assert "D/basophil/bad.png" in caught.value.problem
    assert "--max-quarantined" in caught.value.remedy
    assert left_in(tmp_path) <= {"D", "D.zip"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_unreadable_image_can_be_left_out(tmp_path, make_archive, kind):
    _bad_archive(kind, tmp_path, make_archive)
    prepared = _prepare(tmp_path, max_quarantined=1)
    manifest = _manifest(prepared.folder)
    (bad,) = manifest[manifest["verdict"] != "accepted"].to_dict("records")
    assert (bad["path"], bad["split"], bad["width"]) == ("quarantined/D/basophil/bad.png", "", 0)
    assert bad["reason"]
    assert prepared.info.domains["D"].quarantined == 1
    assert (manifest["verdict"] == "accepted").sum() == 9
    dataset = open_dataset(prepared.folder)
    for split in ("train", "val"):
        samples = dataset.samples(split)
        names = [str(Path(path).relative_to(prepared.folder)) for path in samples.paths]
        fresh = decoded(prepared.folder, manifest.set_index("path").loc[names].reset_index())
        np.testing.assert_array_equal(np.asarray(samples.packed), fresh)


def test_the_bytes_of_an_image_left_out_are_kept_for_a_look(tmp_path, make_archive):
    _bad_archive("a zip", tmp_path, make_archive)
    folder = _prepare(tmp_path, max_quarantined=1).folder
    assert (folder / "quarantined/D/basophil/bad.png").read_bytes() == b"garbage" * 100


def test_two_unreadable_images_are_not_taken_for_duplicates(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", COUNTS, extra={"basophil/a.png": b"", "monocyte/b.png": b""})
    manifest = _manifest(_prepare(tmp_path, max_quarantined=1).folder)
    left = manifest[manifest["verdict"] == "quarantined"]
    assert set(left["kind"]) == {"empty"}


def test_archives_of_nothing_readable_are_refused(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {}, extra={"basophil/a.png": b"x", "monocyte/b.png": b"y"})
    with pytest.raises(HemafastError, match="None of 2 images"):
        _prepare(tmp_path, max_quarantined=1)
    assert left_in(tmp_path) == {"D.zip"}


def test_a_failure_leaves_an_older_data_set_as_it_was(source, make_archive):
    folder = _prepare(source).folder
    before = _snapshot(folder)
    make_archive(source / "Worse.zip", COUNTS, extra={"basophil/bad.png": b"garbage"})
    with pytest.raises(HemafastError):
        _prepare(source)
    assert _snapshot(folder) == before
    assert left_in(source) == {"Matek_19.zip", "Worse.zip", "prepared"}


# A second time


def test_a_second_run_changes_nothing(source):
    first = _prepare(source)
    before = _snapshot(source)
    second = _prepare(source)
    assert (first.fresh, second.fresh) == (True, False)
    assert second.info == first.info
    assert _snapshot(source) == before


def test_a_changed_archive_is_prepared_anew(source, make_archive):
    first = _prepare(source)
    make_archive(source / "Matek_19.zip", COUNTS, seed=5)
    second = _prepare(source)
    assert second.fresh
    assert second.info.fingerprint != first.info.fingerprint
    assert not _prepare(source).fresh


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 7},
        {"pack_sizes": (48,)},
        {"field_of_view": "whole"},
        {"folds": 2},
        {"val_fraction": 0.5},
        {"shards": 2},
    ],
)
def test_other_settings_prepare_anew(source, change):
    _prepare(source)
    assert _prepare(source, **change).fresh


def test_a_data_set_of_another_version_is_replaced(source):
    info = _prepare(source).folder / "dataset.json"
    content = json.loads(info.read_text())
    info.write_text(json.dumps({**content, "schema_version": SCHEMA + 1}))
    with pytest.raises(HemafastError, match=f"has format {SCHEMA + 1}"):
        read_prepared(info.parent)
    assert _prepare(source).fresh
    assert read_prepared(info.parent).info.schema_version == SCHEMA


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGE = {
    "pixels cut": lambda folder: _cut(folder / "packed" / "64-00000.npy"),
    "pixels gone": lambda folder: (folder / "packed" / "64-00000.npy").unlink(),
    "manifest empty": lambda folder: (folder / "manifest.parquet").write_bytes(b""),
    "image cut": lambda folder: _cut(next((folder / "images").rglob("*.png"))),
    "images gone": lambda folder: shutil.rmtree(folder / "images"),
    "list gone": lambda folder: next((folder / "shards").iterdir()).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_data_set_is_prepared_anew(source, damage):
    folder = _prepare(source).folder
    damage(folder)
    assert _prepare(source).fresh
    assert verify(folder).problems == ()


# What is refused


def test_a_class_that_the_challenge_does_not_know_is_refused(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {**COUNTS, "blast": 2})
    with pytest.raises(HemafastError, match="blast \\(2 images, probably myeloblast\\)") as caught:
        _prepare(tmp_path)
    assert "--classes from-data" in caught.value.remedy
    assert not (tmp_path / "prepared").exists()


def test_classes_can_be_taken_from_the_data(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {"blast": 3, "artefact": 3})
    prepared = _prepare(tmp_path, classes="from-data")
    assert prepared.info.classes == ("artefact", "blast")
    lines = "".join(path.read_text() for path in sorted(prepared.folder.glob("shards/*.txt"))).splitlines()
    assert {(line.split("/")[2], line[-1]) for line in lines} == {("artefact", "0"), ("blast", "1")}


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_hemafast_did_not_write_is_never_replaced(source, kind):
    foreign = source / "prepared"
    if kind == "folder":
        foreign.mkdir()
        (foreign / "thesis.tex").write_text("three years of work")
    else:
        foreign.write_text("three years of work")
    before = _snapshot(source)
    with pytest.raises(HemafastError, match="not written by hemafast"):
        _prepare(source)
    assert _snapshot(source) == before


def test_archives_inside_the_output_are_never_deleted(tmp_path, make_archive):
    make_archive(tmp_path / "first" / "A.zip", COUNTS)
    output = _prepare(tmp_path / "first", output=tmp_path / "out").folder
    archive = make_archive(output / "more" / "B.zip", COUNTS, seed=3)
    with pytest.raises(HemafastError):
        _prepare(output / "more", output=output)
    assert archive.is_file()


def test_an_empty_folder_may_be_the_output(source):
    (source / "prepared").mkdir()
    assert _prepare(source).fresh


def test_the_output_may_lie_in_folders_yet_to_be_made(source, tmp_path):
    assert open_dataset(_prepare(source, output=tmp_path / "a" / "b" / "c").folder).info.classes == CHALLENGE_CLASSES


def test_the_current_folder_may_be_the_output(source, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert _prepare(source, output=Path()).fresh


# Interruptions


def test_progress_counts_to_the_end(tmp_path, make_archive):
    make_archive(tmp_path / "D.zip", {"basophil": 70}, size=(20, 20))
    heard = Recorder()
    config = PrepareConfig(source=tmp_path, output=tmp_path / "prepared", pack_sizes=(32,), format="webdataset")
    prepare(config, progress=heard)
    assert [(stage.what, stage.total, stage.unit) for stage in heard.stages] == [
        ("listing files", 1, "archives"),
        ("looking at bit depths", 1, "domains"),
        ("estimating scales", 70, "images"),
        ("reading images", 70, "images"),
        ("finding duplicates", None, "images"),
        ("writing tar files", 2 * config.shards, "files"),
        ("writing to disk", None, "images"),
    ]
    assert heard.stage("reading images").done == [0, 64, 70]
    for stage in heard.stages:
        assert stage.finished
        assert stage.total in (None, stage.done[-1])


@pytest.mark.parametrize(
    "name", [".prepared2-new-" + "0" * 16, ".prepared-new-mine", ".prepared-new-b-new-" + "0" * 16]
)
def test_what_only_looks_like_debris_is_left_alone(source, name):
    (source / name).mkdir()
    _prepare(source)
    assert (source / name).is_dir()


def test_a_folder_of_another_tool_with_a_dataset_json_is_not_taken_for_ours(source, make_archive):
    (source / "prepared").mkdir()
    (source / "prepared" / "dataset.json").write_text('{"name": "a data set for nnU-Net"}')
    make_archive(source / "Other", {"basophil": 4}, seed=5)
    (source / "Other" / "dataset.json").write_text("{}")
    with pytest.raises(HemafastError, match="not written by hemafast"):
        _prepare(source)
    shutil.rmtree(source / "prepared")
    assert "Other" in _prepare(source).info.domains


def test_an_output_within_an_archive_is_refused(source, make_archive):
    folder = make_archive(source / "Other", {"basophil": 4}, seed=5)
    with pytest.raises(HemafastError, match="lies within the archive"):
        _prepare(source, output=folder / "prepared")
    assert {path.name for path in folder.iterdir()} == {"basophil"}


def test_a_prepared_data_set_may_be_read_by_others(source):
    assert _prepare(source).folder.stat().st_mode & 0o777 == 0o755
