"""Ready splits: kept, completed where they lack a side, without copies across them, and without a leak into folds."""

import hashlib
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from hemafast.config import PrepareConfig, checked
from hemafast.errors import HemafastError
from hemafast.preparation import schema
from hemafast.preparation.selection import select_images

A, B = "A", "B"


def _images(*parts: tuple[str, str, int], labels: tuple[str, ...] = ("x", "y")) -> pd.DataFrame:
    """So many images of each domain and ready split, of each class; no two show the same picture."""
    rows = [
        (domain, label, split, f"images/{domain}/{label}/{split or 'none'}{number}.png")
        for domain, split, count in parts
        for label in labels
        for number in range(count)
    ]
    images = pd.DataFrame(rows, columns=["domain", "label", "ready_split", "path"])
    hashes = [hashlib.sha256(path.encode()).hexdigest() for path in images["path"]]
    return images.assign(
        sha256=hashes, pixels_xxh128=hashes, phash="0" * 64, verdict="accepted", kind="", reason="", listed_group=""
    )


def _select(images: pd.DataFrame, **options) -> tuple[pd.DataFrame, tuple[str, ...]]:
    return select_images(images, checked(PrepareConfig, {"max_quarantined": 1.0, **options}))


def _sides(images: pd.DataFrame, **options) -> dict[str, dict[str, int]]:
    """The number of images by domain and split, with folds and without quarantined images."""
    manifest, _ = _select(images, **options)
    found = Counter(zip(manifest["domain"], manifest["split"], strict=True))
    return {domain: {split: n for (name, split), n in sorted(found.items()) if name == domain} for domain in (A, B)}


# domain, ready split, images of each of two classes; options; images by split of A, then of B
SPLITS = {
    "train, val and test are kept": ([(A, "train", 8), (A, "val", 3), (A, "test", 4)], {}, (16, 6, 8), None),
    "train and val are kept": ([(A, "train", 8), (A, "val", 1)], {}, (16, 2, 0), None),
    "without val it is drawn from train": ([(A, "train", 10), (A, "test", 4)], {}, (16, 4, 8), None),
    "train alone is drawn from": ([(A, "train", 10)], {}, (16, 4, 0), None),
    "strays train where val is given": ([(A, "train", 5), (A, "val", 5), (A, "", 5)], {}, (20, 10, 0), None),
    "strays are drawn where it is not": ([(A, "train", 5), (A, "test", 5), (A, "", 5)], {}, (16, 4, 10), None),
    "another domain is drawn": ([(A, "train", 8), (A, "val", 1), (B, "", 10)], {}, (16, 2, 0), (16, 4, 0)),
    "a domain of test images is held out": ([(A, "", 10), (B, "test", 3)], {}, (16, 4, 0), (0, 0, 6)),
    "a held out domain keeps its test": (
        [(A, "train", 10), (A, "test", 3), (B, "train", 5), (B, "val", 2), (B, "test", 1)],
        {"holdout_domain": B},
        (16, 4, 6),
        (0, 14, 2),
    ),
    "a share of 0 leaves the ready val alone": (
        [(A, "train", 5), (A, "val", 3), (B, "", 4)],
        {"holdout_domain": B, "val_fraction": 0},
        (10, 6, 0),
        (0, 8, 0),
    ),
    "a share is held out before validation is drawn": ([(A, "", 10)], {"test_fraction": 0.2}, (12, 4, 4), None),
    "only training images of a ready split are held out": (
        [(A, "train", 10), (A, "val", 3)],
        {"test_fraction": 0.2},
        (16, 6, 4),
        None,
    ),
    "a domain with test images of its own gives no more": (
        [(A, "train", 10), (A, "val", 3), (A, "test", 2), (B, "", 10)],
        {"test_fraction": 0.2},
        (20, 6, 4),
        (12, 4, 4),
    ),
    "of a held out domain a share is held out too": (
        [(A, "", 10), (B, "", 10)],
        {"test_fraction": 0.2, "holdout_domain": B, "val_fraction": 0},
        (16, 0, 4),
        (0, 16, 4),
    ),
}


@pytest.mark.parametrize(("parts", "options", "of_a", "of_b"), SPLITS.values(), ids=SPLITS)
def test_the_ready_split_is_kept_and_completed(parts, options, of_a, of_b):
    found = _sides(_images(*parts), **options)
    for domain, expected in ((A, of_a), (B, of_b or (0, 0, 0))):
        assert tuple(found[domain].get(split, 0) for split in ("train", "val", "test")) == expected


@pytest.mark.parametrize("parts", [[(A, "test", 6), (A, "train", 6)], [(A, "test", 3), (A, "train", 4), (A, "val", 2)]])
def test_no_fold_holds_a_test_image(parts):
    images = _images(*parts)
    tested = set(images.loc[images["ready_split"] == "test", "path"])
    manifest, notes = _select(images, folds=3)
    assert set(manifest.loc[manifest["fold"] == -1, "path"]) == tested
    assert set(schema.in_split(manifest, "test")["path"]) == tested
    for fold in range(3):
        sides = [set(schema.in_split(manifest, split, fold)["path"]) for split in ("train", "val", "test")]
        assert sides[2] == tested
        assert sides[0] | sides[1] == set(images["path"]) - tested
        assert sides[1]
        assert not sides[0] & sides[1]
    assert notes[0].endswith("only test is kept; the folds are drawn over all other images")


def test_patients_are_held_out_as_a_whole_and_folds_are_drawn_over_the_rest():
    images = _images((A, "", 40), (B, "", 40))
    patients = [f"P{number % 16}" for number in range(len(images))]
    manifest, notes = _select(images.assign(listed_group=patients), test_fraction=0.25, folds=3)
    parts = manifest.assign(patient=patients, part=manifest["fold"].where(manifest["split"] != "test", "test"))
    assert set(parts["part"]) == {"test", 0, 1, 2}
    assert (parts.groupby("patient")["part"].nunique() == 1).all()
    held_out = (parts["split"] == "test").groupby([parts["domain"], parts["label"]]).mean()
    assert held_out.between(0.1, 0.4).all()
    assert f"{(parts['split'] == 'test').sum()} test images are held out: nothing else sees them" in notes


def test_the_images_that_are_held_out_depend_on_the_seed_alone():
    images = _images((A, "", 20))
    tested = [set(images.loc[_select(images, test_fraction=0.2, **more)[0]["split"] == "test", "path"]) for more in (
        {}, {"val_fraction": 0.5}, {"folds": 4}, {"seed": 7}
    )]  # fmt: skip
    assert tested[0] == tested[1] == tested[2] != tested[3]


def test_a_share_that_holds_out_nothing_is_refused():
    with pytest.raises(HemafastError, match=r"test_fraction = 0\.2 holds out no image: each domain has test images"):
        _select(_images((A, "train", 5), (A, "val", 2), (A, "test", 5)), test_fraction=0.2)


def test_images_without_the_columns_are_split_as_ever():
    images = _images((A, "", 10))
    plain = images.drop(columns=["ready_split", "listed_group"])
    assert _select(plain)[0]["split"].tolist() == _select(images)[0]["split"].tolist()


NOTES = {
    "kept": ([(A, "train", 8), (A, "val", 3)], {}, ["A: its split is kept: 16 training, 6 validation images"]),
    "drawn from": (
        [(A, "train", 8), (A, "test", 3)],
        {"val_fraction": 0.25},
        [
            "A: its split is kept: 16 training, 6 test images",
            "A: its split has no validation images, so 25% of its training images validate",
        ],
    ),
    "strays": (
        [(A, "train", 8), (A, "val", 3), (A, "", 2), (B, "", 5)],
        {},
        [
            "A: its split is kept: 16 training, 6 validation images",
            "A: 4 images are in no split and count as training images",
        ],
    ),
    "of folders": (
        [(A, "train", 8), (A, "val", 3)],
        {"labels": None},
        ["A: its split is kept: 16 training, 6 validation images"],
    ),
    "nothing ready": ([(A, "", 8)], {}, []),
}


@pytest.mark.parametrize(("parts", "options", "expected"), NOTES.values(), ids=NOTES)
def test_notes_say_what_was_kept(parts, options, expected):
    _, notes = _select(_images(*parts), **{"labels": Path("labels.csv"), **options})
    assert list(notes) == expected


REFUSALS = {
    "only test": ([(A, "test", 5)], {}, "no image for training: 10 test images", "--resplit"),
    "only test, folds": ([(A, "test", 5)], {"folds": 2}, "no image for training: 10 test images", "--resplit"),
    "only val": ([(A, "val", 5), (B, "test", 2)], {}, "10 validation, 4 test images", "--resplit"),
    "held out, only test": ([(A, "", 9), (B, "test", 5)], {"holdout_domain": B}, "No image of B", "another domain"),
}


@pytest.mark.parametrize(("parts", "options", "problem", "remedy"), REFUSALS.values(), ids=REFUSALS)
def test_a_ready_split_that_leaves_nothing_is_refused_and_the_remedy_works(parts, options, problem, remedy):
    images = _images(*parts)
    with pytest.raises(HemafastError) as caught:
        _select(images, **options)
    assert problem in caught.value.problem
    assert remedy in caught.value.remedy
    if remedy == "--resplit":
        assert set(_select(images.assign(ready_split=""), **options)[0]["split"]) == {"train", "val"}


# Copies


def _with_copies(images: pd.DataFrame, *paths: str) -> pd.DataFrame:
    """The same images, with the bytes and pixels of the first path at all `paths`."""
    for column in ("sha256", "pixels_xxh128"):
        images.loc[images["path"].isin(paths), column] = images.loc[images["path"] == paths[0], column].item()
    return images


@pytest.mark.parametrize(
    ("copies", "left"),
    [
        (("train0", "val0"), "val0"),
        (("train0", "test0"), "test0"),
        (("val0", "test0"), "test0"),
        (("train0", "train1", "val0", "test0"), "test0"),
        (("none0", "test0"), "test0"),
        (("none0", "val0"), "val0"),
    ],
)
def test_a_picture_stays_in_test_before_val_before_train(copies, left):
    paths = [f"images/A/x/{name}.png" for name in copies]
    images = _with_copies(_images((A, "train", 5), (A, "val", 5), (A, "test", 5), (A, "", 5)), *paths)
    manifest, _ = _select(images)
    by_name = manifest.set_index(manifest["path"].str.rpartition("/x/")[2])
    for name in copies:
        row = by_name.loc[f"{name}.png"]
        if name == left:
            assert row["split"] == name.rstrip("0")
        else:
            assert (row["split"], row["verdict"], row["kind"]) == ("", "quarantined", "twin validates")
            assert row["path"].startswith("quarantined/")
            assert f"image A/x/{left}.png" in row["reason"]
    assert len(schema.quarantined(manifest)) == len(copies) - 1


def test_a_copy_of_a_test_image_is_left_out_where_validation_is_drawn():
    images = _with_copies(_images((A, "train", 10), (B, "test", 5)), "images/B/x/test0.png", "images/A/x/train3.png")
    manifest, _ = _select(images)
    (twin,) = schema.quarantined(manifest)
    assert (twin.file, twin.reason) == (
        "quarantined/A/x/train3.png",
        "the same picture is the test image B/x/test0.png",
    )


def test_copies_within_one_split_stay():
    images = _with_copies(_images((A, "train", 5), (A, "val", 5)), "images/A/x/train0.png", "images/A/x/train1.png")
    assert not schema.quarantined(_select(images)[0])


def test_too_many_copies_are_refused():
    images = _with_copies(_images((A, "train", 5), (A, "val", 5)), "images/A/x/train0.png", "images/A/x/val0.png")
    with pytest.raises(HemafastError, match=r"1 of 20 images would be quarantined: 1 twin validates"):
        _select(images, max_quarantined=0.01)


# Patients


def _with_patients(images: pd.DataFrame, patients: int) -> pd.DataFrame:
    numbers = images["path"].str.extract(r"(\d+)\.png")[0].astype(int)
    return images.assign(listed_group=[f"P{number % patients}" for number in numbers])


@pytest.mark.parametrize("options", [{}, {"folds": 2}])
def test_patients_of_a_table_stay_whole_where_a_split_is_drawn(options):
    manifest, notes = _select(_with_patients(_images((A, "", 12), (B, "", 12)), 4), **options)
    sides = manifest.groupby("listed_group")[["split", "fold", "group"]].nunique()
    assert (sides == 1).all(axis=None)
    assert not any("several splits" in note for note in notes)


def test_a_pattern_goes_before_the_patients_of_a_table():
    images = _with_patients(_images((A, "", 12)), 1)
    with pytest.raises(HemafastError, match="no validation images"):
        _select(images)  # one patient cannot be on both sides
    manifest, _ = _select(images, group_pattern=r"none(\d+)")
    assert set(manifest["split"]) == {"train", "val"}
    assert manifest["group"].nunique() == 12


def test_images_without_a_patient_are_counted():
    images = _with_patients(_images((A, "", 12)), 6)
    images.loc[:2, "listed_group"] = ""
    assert "3 images have no group in the table of labels or the folders" in _select(images)[1]


def test_patients_in_several_ready_splits_stay_and_are_said():
    images = _with_patients(_images((A, "train", 6), (A, "val", 2), (A, "test", 1)), 3)
    manifest, notes = _select(images)
    assert manifest["split"].tolist() == images["ready_split"].tolist()
    assert notes[-1].startswith("2 patients or slides are in several splits")


def test_classes_that_a_split_lacks_are_said_of_the_splits_that_a_domain_has():
    images = _images((A, "train", 5), (A, "val", 2), (A, "test", 2), (B, "", 5))
    _, notes = _select(images[(images["label"] != "y") | (images["ready_split"] != "test")])
    assert [note for note in notes if "none in" in note] == ["A, y: 7 images in 7 groups, none in split test"]
