"""The split: stratified, seeded, independent of order; duplicates together; contradictions found."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.prepare.shards import shard_order
from hemafast.prepare.split import SPLITS, TRAIN, VAL, assign_split, find_contradictions

COUNTS = {("A", "x"): 40, ("A", "y"): 7, ("B", "x"): 13, ("B", "y"): 2, ("B", "z"): 1}


def _images(counts=COUNTS) -> pd.DataFrame:
    rows = [
        {"domain": domain, "label": label, "group": f"{domain}{label}{n}", "path": f"images/{domain}/{label}/{n}.png"}
        for (domain, label), count in counts.items()
        for n in range(count)
    ]
    return pd.DataFrame(rows)


def _validating(images: pd.DataFrame, **options) -> pd.DataFrame:
    return images[assign_split(images, **{"val_fraction": 0.2, "seed": 1, **options}) == VAL]


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.5, 0.9])
def test_each_class_of_each_domain_sends_its_share(fraction):
    found = _validating(_images(), val_fraction=fraction).groupby(["domain", "label"]).size()
    for stratum, count in COUNTS.items():
        if count > 2:
            assert abs(found.get(stratum, 0) - count * fraction) < 1
            assert 0 < found[stratum] < count


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_two_images_go_one_to_each_side(fraction):
    assert len(_validating(_images({("A", "x"): 2}), val_fraction=fraction)) == 1


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_a_lone_image_trains(fraction):
    assert _validating(_images({("A", "x"): 1, ("B", "x"): 1}), val_fraction=fraction).empty


def test_a_group_alone_trains_however_many_images_it_has():
    images = _images({("A", "x"): 5}).assign(group="same")
    assert _validating(images).empty


@pytest.mark.parametrize("shuffle", range(5))
def test_the_split_does_not_depend_on_the_order_of_the_rows(shuffle):
    images = _images()
    mixed = images.sample(frac=1, random_state=shuffle)
    expected = assign_split(images, val_fraction=0.2, seed=1)
    pd.testing.assert_series_equal(assign_split(mixed, val_fraction=0.2, seed=1).sort_index(), expected)


def test_another_seed_splits_otherwise():
    assert set(_validating(_images(), seed=1)["path"]) != set(_validating(_images(), seed=2)["path"])


def test_adding_a_class_moves_no_other_image():
    before = set(_validating(_images())["path"])
    after = _validating(_images({**COUNTS, ("C", "x"): 30}))
    assert set(after[after["domain"] != "C"]["path"]) == before


STRATA = st.tuples(st.sampled_from("AB"), st.sampled_from("xyz"))
ROWS = st.lists(st.tuples(STRATA, st.integers(0, 15)), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(rows=ROWS, fraction=st.floats(0.01, 0.99), seed=st.integers(0, 2**32))
def test_every_image_gets_one_split_and_no_group_crosses_it(rows, fraction, seed):
    # A group belongs to one label, as after contradictions are taken out; it may span domains.
    images = pd.DataFrame(
        [
            {"domain": domain, "label": label, "group": f"{label}{group}", "path": str(n)}
            for n, ((domain, label), group) in enumerate(rows)
        ]
    )
    split = assign_split(images, val_fraction=fraction, seed=seed)
    assert split.index.equals(images.index)
    assert split.isin(SPLITS).all()
    assert (split.groupby(images["group"]).nunique() == 1).all()
    # What a class has two of is on both sides.
    for label, part in images.groupby("label"):
        if part["domain"].nunique() == 1 and part["group"].nunique() >= 2:
            assert set(split[part.index]) == {TRAIN, VAL}, label


def test_contradictions_are_found_and_each_names_the_other():
    images = pd.DataFrame(
        {
            "path": ["images/A/x/1.png", "images/A/y/2.png", "images/B/x/3.png", "images/A/x/4.png"],
            "label": ["x", "y", "x", "x"],
            "group": ["same", "same", "other", "other"],
        },
        index=[10, 11, 12, 13],
    )
    assert find_contradictions(images).to_dict() == {
        10: "contradictory labels: the same image is A/y/2.png",
        11: "contradictory labels: the same image is A/x/1.png",
    }


def test_a_third_label_names_both_others():
    images = pd.DataFrame({"path": ["images/A/x/1", "images/A/y/1", "images/A/z/1"], "label": [*"xyz"], "group": "g"})
    assert find_contradictions(images)[0].endswith("A/y/1, A/z/1")


def test_without_contradictions_none_are_found():
    assert find_contradictions(_images()).empty


def test_rows_stand_in_order_of_split_and_well_mixed():
    images = _images({("A", "x"): 100, ("A", "y"): 100})
    images["split"] = assign_split(images, val_fraction=0.2, seed=1)
    images.loc[::10, "split"] = ""
    ordered = images.iloc[shard_order(images, seed=1)]
    assert list(dict.fromkeys(ordered["split"])) == [TRAIN, VAL, ""]
    assert (ordered["split"].ne(ordered["split"].shift())).sum() == 3
    assert sorted(ordered["path"]) == sorted(images["path"])
    first = ordered["label"].iloc[:60]
    assert 15 < (first == "x").sum() < 45


def test_the_order_depends_on_the_seed_and_not_on_the_rows_before():
    images = _images().assign(split=TRAIN)
    mixed = images.sample(frac=1, random_state=3)

    def paths(frame, seed):
        return list(frame["path"].iloc[shard_order(frame, seed)])

    assert paths(images, 1) == paths(mixed, 1)
    assert paths(images, 1) != paths(images, 2)
    assert np.array_equal(np.sort(shard_order(images, 1)), np.arange(len(images)))
