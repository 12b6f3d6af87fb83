"""What a user may choose: folds, a domain held out, a published split, patients, checksums, the physical scale."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from trees import tree

from hemafast.config import PrepareConfig, checked
from hemafast.data.dataset import open_dataset
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare
from hemafast.preparation.tables import lists


@pytest.fixture
def source(tmp_path, make_archive):
    make_archive(tmp_path / "source" / "A.zip", {"basophil": 10, "monocyte": 9})
    make_archive(tmp_path / "source" / "B.zip", {"basophil": 5, "myeloblast": 7}, seed=1)
    return tmp_path / "source"


def _prepare(source, **options):
    fields = {"source": source, "output": source / "prepared", "pack_sizes": (32,), "max_quarantined": 1.0} | options
    return prepare(checked(PrepareConfig, fields))


def _manifest(source, **options) -> pd.DataFrame:
    manifest = _prepare(source, **options).files.manifest
    return manifest.assign(name=manifest["path"].str.partition("/")[2]).set_index("name")


def _refusal(source, **options) -> HemafastError:
    with pytest.raises(HemafastError) as caught:
        _prepare(source, **options)
    assert {path.name for path in source.iterdir()} - {".prepared.lock"} == {"A.zip", "B.zip"}
    return caught.value


# Folds


def test_every_image_validates_in_exactly_one_fold(source):
    folder = _prepare(source, folds=3).folder
    seen = []
    for fold in range(3):
        dataset = open_dataset(folder, fold)
        train, val = dataset.samples("train"), dataset.samples("val")
        assert not set(train.paths) & set(val.paths)
        assert len(train) + len(val) == 31
        assert sum(dataset.counts("val")) == len(val)
        seen += val.paths
        lists_of_fold = sorted(folder.glob(f"shards/fold{fold}-val-*.txt"))
        lines = "".join(path.read_text() for path in lists_of_fold).splitlines()
        assert [line.rsplit(" ", 1)[0] for line in lines] == [
            path.removeprefix(f"{folder.absolute()}/") for path in val.paths
        ]
    assert len(seen) == len(set(seen)) == 31
    assert set(open_dataset(folder).samples("val").paths) == set(open_dataset(folder, 0).samples("val").paths)
    with pytest.raises(HemafastError, match="no fold 3"):
        open_dataset(folder, 3)


def test_a_class_too_rare_for_the_folds_is_said(source):
    notes = _prepare(source, folds=6).info.notes
    assert any(note.startswith("B, basophil: 5 images in 5 groups, none in fold") for note in notes)


# A domain held out


def test_a_held_out_domain_validates_as_a_whole(source):
    manifest = _manifest(source, holdout_domain="B")
    assert set(manifest.loc[manifest["domain"] == "B", "split"]) == {"val"}
    assert manifest.loc[manifest["domain"] == "A", "split"].value_counts().to_dict() == {"train": 15, "val": 4}


def test_all_others_train_if_nothing_else_shall_validate(source):
    prepared = _prepare(source, holdout_domain="B", val_fraction=0)
    manifest = prepared.files.manifest
    assert manifest.groupby("domain")["split"].agg(set).to_dict() == {"A": {"train"}, "B": {"val"}}
    assert any("B, myeloblast" in note and "none in split train" in note for note in prepared.info.notes)


def test_a_picture_that_the_held_out_domain_shares_does_not_train(source, make_archive, draw, encode):
    same = encode(draw(99))
    make_archive(source / "A.zip", {"basophil": 10, "monocyte": 9}, extra={"basophil/twin.png": same})
    make_archive(source / "B.zip", {"basophil": 5}, seed=1, extra={"basophil/twin.png": same})
    assert _manifest(source, holdout_domain="B", val_fraction=0).loc["A/basophil/twin.png", "split"] == "val"


def test_a_domain_of_which_nothing_is_left_cannot_be_held_out(source, make_archive):
    make_archive(source / "B.zip", {}, extra={f"basophil/{n}.png": b"bad" for n in range(3)})
    assert "No image of B can be used" in _refusal(source, holdout_domain="B").problem


def test_more_folds_than_images_are_refused(source):
    error = _refusal(source, folds=60)
    assert "60 folds" in error.problem
    assert "at most 31" in error.remedy


def test_an_unknown_domain_cannot_be_held_out(source):
    assert "A, B" in _refusal(source, holdout_domain="C").remedy


# A published split


def test_a_split_can_be_taken_over_from_another_preparation(source, tmp_path):
    first = _manifest(source, seed=7, output=tmp_path / "first")
    second = _manifest(source, seed=8, split_file=tmp_path / "first" / "split.csv", output=tmp_path / "second")
    pd.testing.assert_series_equal(first["split"], second["split"])
    assert not first["split"].equals(_manifest(source, seed=8, output=tmp_path / "third")["split"])


def _listed(tmp_path, text: str):
    path = tmp_path / "list.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_images_that_a_split_does_not_name_are_left_out(source, tmp_path):
    names = ["A/basophil/BAS_000.png", "basophil/BAS_009.png", "MON_003.png", "B/myeloblast/MYE_001.png"]
    text = "\ufeffpath,split,remark\r\n" + "".join(
        f'"{name}",{split},x\r\n' for name, split in zip(names, ["train", "val", "train", "val"], strict=True)
    )
    manifest = _manifest(source, split_file=_listed(tmp_path, text))
    assert manifest["split"].value_counts().to_dict() == {"": 27, "train": 2, "val": 2}
    assert set(manifest.loc[manifest["split"] == "", "kind"]) == {"not in the split"}


def test_a_training_image_whose_picture_validates_is_left_out(source, make_archive, draw, encode, tmp_path):
    same = encode(draw(99))
    make_archive(source / "A.zip", {"basophil": 4}, extra={"basophil/a.png": same, "basophil/b.png": same})
    names = [f"A/basophil/BAS_{n:03d}.png,train" for n in range(4)] + ["a.png,train", "b.png,val"]
    manifest = _manifest(source, split_file=_listed(tmp_path, "path,split\n" + "\n".join(names)))
    assert manifest.loc["A/basophil/a.png", ["verdict", "kind"]].tolist() == ["quarantined", "twin validates"]
    assert manifest.loc["A/basophil/b.png", "split"] == "val"


BAD_SPLITS = {
    "": "is empty",
    "path\nA/x.png\n": "no column split",
    "path,split\nA/basophil/BAS_000.png,fold7\n": "'fold7'",
    "path,split\nA/basophil/BAS_000.png,test\n": "lists no training image",
    "path,split\nBAS_000.png,train\n": "may be",
    "path,split\nA/basophil/BAS_000.png,train\nA/basophil/BAS_000.png,val\n": "train and val",
    "path,split\nA/basophil/BAS_000.png,\n": "line 2",
    "path,split\nelsewhere.png,train\n": "lists no image",
}


@pytest.mark.parametrize("text", BAD_SPLITS)
def test_a_bad_split_file_is_refused_and_named(source, tmp_path, text):
    error = _refusal(source, split_file=_listed(tmp_path, text))
    assert "list.csv" in error.problem
    assert BAD_SPLITS[text] in error.problem


def test_a_list_that_is_no_text_or_is_missing_is_refused(source, tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x01" * 50)
    for name in ("binary.csv", "none.csv"):
        for field in ("split_file", "groups", "checksums"):
            assert name in _refusal(source, **{field: tmp_path / name}).problem


# Patients


def test_patients_and_copies_stay_whole(source, make_archive, draw, encode, tmp_path):
    same = encode(draw(99))
    counts = {"basophil": 10, "monocyte": 9}
    make_archive(source / "A.zip", counts, extra={"basophil/a.png": same, "basophil/b.png": same})
    rows = [f"A/basophil/BAS_{n:03d}.png,P{n % 3}" for n in range(10)] + ["a.png,P0", "b.png,P1"]
    prepared = _prepare(source, groups=_listed(tmp_path, "path,group\n" + "\n".join(rows)), val_fraction=0.4)
    manifest = prepared.files.manifest.set_index("path")
    of_first_two = [f"images/A/basophil/BAS_{n:03d}.png" for n in range(10) if n % 3 < 2]
    joined = manifest.loc[[*of_first_two, "images/A/basophil/a.png", "images/A/basophil/b.png"]]
    assert joined["group"].nunique() == joined["split"].nunique() == 1  # by the copies of one picture
    assert (manifest.groupby("group")["split"].nunique() == 1).all()
    assert "21 images have no group in list.csv" in prepared.info.notes


@pytest.mark.parametrize("pattern", [r"^[A-Z]+_(\d+)", r"_00(?P<patient>\d)(\.png)"])
def test_patients_can_be_named_by_the_files(source, pattern):
    prepared = _prepare(source, group_pattern=pattern)
    manifest = prepared.files.manifest
    patient = manifest["domain"] + manifest["path"].str.extract(r"_(\d+)\.png$")[0]
    assert (manifest.groupby(patient)["group"].nunique() == 1).all()
    assert (manifest.groupby(patient)["split"].nunique() == 1).all()
    assert (manifest.groupby("group")["domain"].nunique() == 1).all()  # the same number elsewhere is somebody else


def test_files_that_a_pattern_does_not_fit_are_counted(source, make_archive, encode, draw):
    make_archive(source / "A.zip", {"basophil": 9, "monocyte": 9}, extra={"basophil/odd.png": encode(draw(77))})
    prepared = _prepare(source, group_pattern=r"_(\d+)\.")
    assert r"1 image has no group in _(\d+)\." in prepared.info.notes


def test_a_pattern_that_fits_no_file_is_refused(source):
    error = _refusal(source, group_pattern="^(patient)")
    assert "matches no file name" in error.problem
    assert ".png" in error.remedy


# Checksums


def _sums(source, tmp_path, names: dict[str, bytes]):
    return _listed(tmp_path, "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in names.items()))


def test_an_archive_that_is_not_the_listed_one_is_refused(source, tmp_path):
    data = {name: (source / name).read_bytes() for name in ("A.zip", "B.zip")}
    notes = _prepare(source, checksums=_sums(source, tmp_path, data), output=tmp_path / "o").info.notes
    assert not any("list.csv" in note for note in notes)
    error = _refusal(source, checksums=_sums(source, tmp_path, data | {"B.zip": b"other"}))
    assert "B.zip" in error.problem


def test_an_image_that_is_not_the_listed_one_is_quarantined(source, tmp_path):
    images = {
        row.path: (source / "prepared" / row.path).read_bytes() for row in _prepare(source).files.manifest.itertuples()
    }
    names = list(images)
    listed = {names[0]: images[names[0]], names[1].removeprefix("images/"): b"other", "gone/x.png": b""}
    prepared = _prepare(source, checksums=_sums(source, tmp_path, listed))
    (refused,) = prepared.quarantine
    assert (refused.file, refused.kind) == (names[1].replace("images", "quarantined", 1), "checksum")
    assert hashlib.sha256(b"other").hexdigest() in refused.reason
    assert {"29 images are not in list.csv", "1 entry of list.csv matches no image"} <= set(prepared.info.notes)


@pytest.mark.parametrize("text", ["", "# nothing\n", "abc  x.png\n", "g" * 64 + "  x.png\n", "0" * 64 + "\n"])
def test_a_bad_list_of_checksums_is_refused(source, tmp_path, text):
    assert "list.csv" in _refusal(source, checksums=_listed(tmp_path, text)).problem


def test_checksums_are_read_as_sha256sum_writes_them(tmp_path):
    one, two = "a" * 64, "B" * 64
    found = lists.read_checksums(_listed(tmp_path, f"{one}  a b.png\n{two} *./images/D/x.png\n\n# c\n"))
    assert found == {"a b.png": one, "./images/D/x.png": two.lower()}


@pytest.mark.parametrize("folder", ["Source/", "/data/Source/", "./"])
def test_archives_may_be_listed_with_their_folders(source, tmp_path, folder):
    sound = {folder + name: (source / name).read_bytes() for name in ("A.zip", "B.zip")}
    notes = _prepare(source, checksums=_sums(source, tmp_path, sound), output=tmp_path / "o").info.notes
    assert not any("list.csv" in note for note in notes)
    error = _refusal(source, checksums=_sums(source, tmp_path, sound | {f"{folder}A.zip": b"other"}))
    assert "A.zip is not the archive" in error.problem


def test_a_list_of_other_things_checks_nothing_and_is_refused(source, tmp_path):
    error = _refusal(source, checksums=_sums(source, tmp_path, {"C.zip": b"x", "A/basophil/no.png": b"y"}))
    assert "list.csv lists no archive" in error.problem


@pytest.mark.parametrize("prefix", ["", "./", "Source/prepared/images/", "C:\\data\\images\\"])
def test_images_may_be_listed_with_the_folders_they_lay_in(prefix):
    names = ["A/basophil/x.png", "B/basophil/x.png"]
    path = prefix + ("A\\basophil\\x.png" if "\\" in prefix else "A/basophil/x.png")
    assert lists.resolve(Path("list.csv"), [(path, "P1")], names).values == {"A/basophil/x.png": "P1"}


# Physical scale


def _ruler(width: int, height: int) -> np.ndarray:
    """Smooth pixels that tell where they are."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)], axis=2).astype(np.uint8)


@pytest.mark.parametrize(("field", "a", "b"), [("auto", 50, 100), (10.0, 20, 40), ("whole", 90, 110), (45, 90, 180)])
def test_the_field_of_view_is_cut_in_micrometres(tmp_path, encode, make_archive, field, a, b):
    pixels = {"A": _ruler(120, 90), "B": _ruler(110, 130)}
    for domain, image in pixels.items():
        make_archive(tmp_path / domain, {"monocyte": 2}, extra={"basophil/ruler.png": encode(image)}, size=(110, 110))
    scales = {"A": 0.5, "B": 0.25}
    prepared = _prepare(tmp_path, field_of_view=field, um_per_pixel=scales, pack_sizes=(64, 32))
    assert {name: info.um_per_pixel for name, info in prepared.info.domains.items()} == scales
    manifest = prepared.files.manifest
    for domain, window in (("A", a), ("B", b)):
        row = manifest.index[manifest["path"].str.endswith(f"{domain}/basophil/ruler.png")][0]
        height, width, _ = pixels[domain].shape
        if window > min(width, height):  # asked for more than there is
            assert manifest.loc[row, "kind"] == "field of view"
            continue
        assert manifest.loc[row, "window"] == window
        left, top = (width - window) // 2, (height - window) // 2
        box = (left, top, left + window, top + window)
        for size in (64, 32):
            expected = Image.fromarray(pixels[domain]).resize((size, size), Image.Resampling.BILINEAR, box=box)
            difference = np.abs(prepared.files.packed[size][row].astype(int) - np.asarray(expected))
            assert difference[2:-2, 2:-2].max() <= 2  # at the edges DALI looks beyond the window


def test_an_image_that_shows_less_than_asked_is_quarantined_and_than_usual_keeps_its_scale(tmp_path, make_archive):
    make_archive(tmp_path / "A", {"basophil": 4}, size=(64, 60))
    with pytest.raises(HemafastError, match="field of view"):
        _prepare(tmp_path, field_of_view=61.0, um_per_pixel={"A": 1.0}, max_quarantined=0.05)
    usual = _prepare(tmp_path, um_per_pixel={"A": 0.2}, pack_sizes=[125])
    assert set(usual.files.manifest["window"]) == {125}
    said = "A: 4 images are smaller than the field of view of 125 px; their edges are repeated to fill it"
    assert said in usual.info.notes
    square = usual.files.packed[125][0].astype(int)
    image = np.asarray(Image.open(usual.folder / usual.files.manifest["path"][0]).convert("RGB")).astype(int)
    assert np.abs(square[33:93, 31:95] - image).max() <= 3  # not scaled, in the middle
    assert np.abs(square[:33, 31:95] - image[0]).max() <= 3
    assert np.abs(square[33:93, 95:] - image[:, -1:]).max() <= 3


def test_a_field_of_view_needs_a_scale(source):
    error = _refusal(source, field_of_view=25, um_per_pixel={"A": 0.1, "B": "unknown"})
    assert "B" in error.problem
    assert "--um-per-pixel B=0.1" in error.remedy


@pytest.mark.parametrize("side", [62, 70])
def test_images_of_one_domain_that_look_resampled_are_said(tmp_path, make_archive, encode, draw, side):
    extra = {"basophil/odd.png": encode(draw(7, side, side))}
    make_archive(tmp_path / "A", {"basophil": 4}, size=(60, 64), extra=extra)
    said = [note for note in _prepare(tmp_path, um_per_pixel={"A": 1.0}).info.notes if "resampled" in note]
    assert len(said) == (side == 70)
    assert all(note.startswith("A: images of 60 to 70 px; 1.0 um/px") for note in said)


@pytest.mark.parametrize("scale", [2.0, 100.0])
def test_a_scale_that_leaves_no_pixels_is_refused(source, scale):
    error = _refusal(source, um_per_pixel={"A": scale})
    assert f"{round(25 / scale)} pixels of A at {scale:g} um/px" in error.problem
    assert "--um-per-pixel" in error.remedy


def test_a_scale_of_no_archive_is_refused(source):
    assert "C" in _refusal(source, um_per_pixel={"C": 0.1}).problem


# How much may be left out


def test_more_than_five_per_cent_stop_it_unless_allowed(tmp_path, make_archive):
    make_archive(tmp_path / "A", {"basophil": 18}, extra={"basophil/bad.png": b"x"})
    with pytest.raises(HemafastError, match=r"1 of 19 images would be quarantined: 1 not an image"):
        _prepare(tmp_path, max_quarantined=0.05)
    make_archive(tmp_path / "A", {"basophil": 20})
    assert len(_prepare(tmp_path, max_quarantined=0.05).quarantine) == 1


def test_strict_allows_none_even_if_the_data_set_is_there(tmp_path, make_archive):
    make_archive(tmp_path / "A", {"basophil": 20}, extra={"basophil/bad.png": b"x"})
    folder = _prepare(tmp_path).folder
    before = (folder / "dataset.json").read_bytes()
    with pytest.raises(HemafastError, match=r"A/basophil/bad\.png") as caught:
        _prepare(tmp_path, strict=True)
    assert "--strict" in caught.value.remedy
    assert (folder / "dataset.json").read_bytes() == before


def test_what_is_tolerated_is_no_reason_to_prepare_anew(source):
    assert _prepare(source).fresh
    assert not _prepare(source, max_quarantined=0.5).fresh


def test_sizes_count_once_and_in_any_order(source, tmp_path):
    trees = [
        tree(_prepare(source, pack_sizes=sizes, output=tmp_path / f"{number}").folder)
        for number, sizes in enumerate([(64, 32), (32, 64), (32, 64, 32)])
    ]
    assert trees[0] == trees[1] == trees[2]


def test_nothing_readable_is_an_error_whatever_else_was_asked(tmp_path, make_archive):
    make_archive(tmp_path / "A", {}, extra={f"basophil/{n}.png": b"bad" for n in range(4)})
    with pytest.raises(HemafastError, match="None of 4 images"):
        _prepare(tmp_path, group_pattern="(.)")


def test_pictures_can_be_looked_at_in_several_sizes(source):
    prepared = _prepare(source, pack_sizes=(64, 32))
    dataset = open_dataset(prepared.folder)
    assert dataset.samples("train", 56).packed_size == 64
    assert dataset.samples("train", 28).packed_size == 32
    image = Image.open(io.BytesIO((prepared.folder / prepared.files.manifest["path"][0]).read_bytes()))
    assert image.size == (64, 60)
