"""The split: disjoint, complete, stratified, whole groups, the same wherever and in whatever order it is drawn."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.preparation.split import (
    SPLITS,
    TRAIN,
    VAL,
    assign_folds,
    assign_split,
    fair_order,
    missing_strata,
)


def _images(counts: dict[tuple[str, str], int], twins: int = 0) -> pd.DataFrame:
    """So many images of each domain and class, the first `twins` of each stratum in pairs."""
    rows = []
    for (domain, label), count in counts.items():
        for number in range(count):
            group = number // 2 if number < twins else number + twins
            rows.append((domain, label, f"{domain}/{label}/{number}", f"{domain}{label}{group}"))
    return pd.DataFrame(rows, columns=["domain", "label", "path", "group"])


def _shuffled(images: pd.DataFrame, seed: int) -> pd.DataFrame:
    return images.sample(frac=1, random_state=seed)


STRATA = st.dictionaries(
    st.tuples(st.sampled_from(["A", "B", "C"]), st.sampled_from(["x", "y", "z"])), st.integers(1, 40), min_size=1
)
SEEDS = st.integers(0, 10_000)


@given(STRATA, st.floats(0.05, 0.95), SEEDS)
@settings(max_examples=80, deadline=None)
def test_a_split_is_complete_stratified_within_one_and_leaves_no_side_empty(counts, fraction, seed):
    images = _images(counts)
    split = assign_split(images, val_fraction=fraction, seed=seed)
    assert set(split) <= set(SPLITS)
    assert split.index.equals(images.index)
    for stratum, part in images.assign(split=split).groupby(["domain", "label"]):
        held = (part["split"] == VAL).sum()
        assert abs(held - fraction * counts[stratum]) <= 1
        if counts[stratum] >= 2:
            assert 0 < held < counts[stratum]


@given(STRATA, st.integers(2, 7), SEEDS)
@settings(max_examples=80, deadline=None)
def test_folds_are_complete_stratified_within_one_and_of_near_equal_size(counts, folds, seed):
    images = _images(counts)
    fold = assign_folds(images, folds=folds, seed=seed)
    assert set(fold) <= set(range(folds))
    for stratum, part in images.assign(fold=fold).groupby(["domain", "label"]):
        held = part["fold"].value_counts().reindex(range(folds), fill_value=0)
        assert (abs(held - counts[stratum] / folds) <= 1).all()
    sizes = fold.value_counts().reindex(range(folds), fill_value=0)
    assert sizes.max() - sizes.min() <= len(counts)


@given(STRATA, st.integers(0, 10), SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_split_depends_on_neither_order_nor_index(counts, twins, seed):
    images = _images(counts, twins)
    for assign in (
        lambda rows: assign_split(rows, val_fraction=0.3, seed=seed),
        lambda rows: assign_folds(rows, folds=3, seed=seed),
    ):
        first = assign(images)
        again = assign(_shuffled(images, seed)).sort_index()
        pd.testing.assert_series_equal(first, again)


@given(STRATA, st.integers(0, 20), st.floats(0.1, 0.9), SEEDS)
@settings(max_examples=50, deadline=None)
def test_a_group_never_crosses_the_split(counts, twins, fraction, seed):
    images = _images(counts, twins)
    split = assign_split(images, val_fraction=fraction, seed=seed)
    assert (split.groupby(images["group"]).nunique() == 1).all()


def test_the_split_of_an_example_is_what_it_was():
    images = _images({("A", "x"): 6, ("A", "y"): 5, ("B", "x"): 3})
    split = assign_split(images, val_fraction=0.3, seed=42)
    assert sorted(images.loc[split == VAL, "path"]) == FROZEN


FROZEN = ["A/x/0", "A/x/2", "A/y/0", "A/y/3", "B/x/2"]


@pytest.mark.parametrize("fraction", [0.001, 0.5, 0.999])
def test_a_lone_image_trains(fraction):
    images = _images({("A", "x"): 1, ("B", "x"): 1})
    assert set(assign_split(images, val_fraction=fraction, seed=1)) == {TRAIN}


def test_another_seed_is_another_split():
    images = _images({("A", "x"): 100})
    splits = {tuple(assign_split(images, val_fraction=0.2, seed=seed)) for seed in range(5)}
    assert len(splits) == 5


@pytest.mark.parametrize("fraction", [0.01, 0.2, 0.99])
def test_a_rare_class_stands_on_both_sides(fraction):
    images = _images({("A", "x"): 1000, ("B", "x"): 3, ("B", "y"): 2})
    parts = images.assign(split=assign_split(images, val_fraction=fraction, seed=1))
    for _, part in parts.groupby(["domain", "label"]):
        assert set(part["split"]) == set(SPLITS)
    assert missing_strata(parts, "split", SPLITS) == []


def test_what_cannot_stand_on_both_sides_is_said():
    images = _images({("A", "x"): 10, ("B", "y"): 1})
    images.loc[images["label"] == "x", "group"] = [f"g{n}" for n in range(10)]
    parts = images.assign(split=assign_split(images, val_fraction=0.2, seed=1))
    assert missing_strata(parts, "split", SPLITS) == ["B, y: 1 image in 1 group, none in split val"]


def _patients(seed: int) -> pd.DataFrame:
    """60 patients with a few to fifty cells of several classes each; two classes are rare."""
    generator = np.random.default_rng(seed)
    rows = []
    for patient in range(60):
        for number in range(int(generator.integers(3, 50))):
            label = generator.choice(["x", "y", "z", "rare", "rarer"], p=[0.5, 0.3, 0.15, 0.04, 0.01])
            rows.append(("A", label, f"{patient}/{number}", f"patient{patient}"))
    return pd.DataFrame(rows, columns=["domain", "label", "path", "group"])


def _deviation(images: pd.DataFrame, validates: pd.Series, fraction: float) -> float:
    """Mean relative error of the strata's share in validation."""
    shares = validates.groupby(images["label"]).mean()
    return float((shares - fraction).abs().mean() / fraction)


def test_whole_patients_are_stratified_far_better_than_by_chance():
    ours, chance = [], []
    for seed in range(10):
        images = _patients(seed)
        split = assign_split(images, val_fraction=0.2, seed=seed)
        assert (split.groupby(images["group"]).nunique() == 1).all()
        ours.append(_deviation(images, split == VAL, 0.2))
        picked = np.random.default_rng(seed).choice(images["group"].unique(), 12, replace=False)
        chance.append(_deviation(images, images["group"].isin(picked), 0.2))
    assert np.mean(ours) < np.mean(chance) / 2


def test_a_class_within_one_patient_is_left_where_it_is():
    images = _patients(0)
    images = pd.concat(
        [
            images,
            pd.DataFrame([("A", "only", "p/1", "patient3"), ("A", "only", "p/2", "patient3")], columns=images.columns),
        ],
        ignore_index=True,
    )
    parts = images.assign(split=assign_split(images, val_fraction=0.2, seed=0))
    assert parts.loc[parts["label"] == "only", "split"].nunique() == 1
    assert any("only: 2 images in 1 group" in sentence for sentence in missing_strata(parts, "split", SPLITS))


@given(STRATA, SEEDS)
@settings(max_examples=40, deadline=None)
def test_every_stretch_of_the_order_is_a_fair_sample(counts, seed):
    images = _images(counts)
    order = fair_order(images)
    assert sorted(order) == list(range(len(images)))
    generator = np.random.default_rng(seed)
    start, stop = sorted(generator.integers(0, len(images) + 1, 2))
    stretch = images.iloc[order[start:stop]].groupby(["domain", "label"]).size()
    for stratum, count in counts.items():
        expected = count * (stop - start) / len(images)
        assert abs(stretch.get(stratum, 0) - expected) <= 1 + len(counts) * count / len(images)


def test_the_order_does_not_depend_on_the_order_of_the_rows():
    images = _images({("A", "x"): 30, ("B", "x"): 7, ("B", "y"): 12})
    mixed = _shuffled(images, 3)
    assert list(images["path"].iloc[fair_order(images)]) == list(mixed["path"].iloc[fair_order(mixed)])


@pytest.mark.slow
def test_a_full_sized_split_takes_seconds_at_most():
    """33,000 images in 500 patients and 22 strata: the work is linear in groups, not quadratic."""
    generator = np.random.default_rng(0)
    share = np.array([2.0**-n for n in range(10)] + [2.0**-9]) / 2
    labels = generator.choice([f"c{n}" for n in range(11)], 33_000, p=share)
    images = pd.DataFrame({"domain": generator.choice(["A", "B"], 33_000), "label": labels})
    images["group"] = [f"p{n}" for n in generator.integers(0, 500, 33_000)]
    parts = images.assign(split=assign_split(images, val_fraction=0.2, seed=0))
    assert 0.19 < (parts["split"] == VAL).mean() < 0.21
    assert set(parts["split"]) == {TRAIN, VAL}
