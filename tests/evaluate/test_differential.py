"""Differential counts: percent of leukocytes, erythroblasts beside them, steps of laboratories, calls."""

import numpy as np
import pytest
from scipy.stats import binomtest

from hemafast.evaluate.differential import call_of, counts_of, differential, reported

COUNTS = {"neutrophil": 62, "lymphocyte": 31, "monocyte": 7, "erythroblast": 12}


def test_percentages_are_of_leukocytes_and_erythroblasts_are_not_among_them():
    found = differential(COUNTS, ["erythroblast"])
    assert found["leukocytes"] == 100
    assert [row["percent"] for row in found["classes"].values()] == [62, 31, 7]
    assert found["apart"]["erythroblast"]["per_100"] == 12
    assert "erythroblast" not in found["classes"]


def test_intervals_are_those_of_wilson():
    row = differential(COUNTS, ["erythroblast"])["classes"]["monocyte"]
    ends = binomtest(7, 100).proportion_ci(method="wilson")
    np.testing.assert_allclose(row["ci95"], [100 * ends.low, 100 * ends.high])


def test_intervals_hold_the_share_of_the_blood_in_95_of_100_counts():
    generator = np.random.default_rng(0)
    share, per_100, hits = 0.07, 12, np.zeros(2)
    for _ in range(400):
        cells = generator.random(150) < per_100 / (100 + per_100)
        monocytes = generator.binomial((~cells).sum(), share)
        counts = {"monocyte": monocytes, "other": (~cells).sum() - monocytes, "erythroblast": cells.sum()}
        found = differential({name: int(count) for name, count in counts.items()}, ["erythroblast"])
        for place, (ends, truth) in enumerate(
            [(found["classes"]["monocyte"]["ci95"], 7), (found["apart"]["erythroblast"]["ci95"], per_100)]
        ):
            hits[place] += ends[0] <= truth <= ends[1]
    assert (hits / 400 > 0.92).all()
    assert (hits / 400 < 0.98).all()


def test_without_leukocytes_there_are_counts_and_no_percentages():
    found = differential({"neutrophil": 0, "erythroblast": 3}, ["erythroblast"])
    assert found["classes"]["neutrophil"] == {"count": 0, "percent": None, "ci95": None, "reported": None}
    assert found["apart"]["erythroblast"] == {"count": 3, "per_100": None, "ci95": None}


@pytest.mark.parametrize("convention", [100, 200])
def test_reported_percentages_add_up_and_are_less_than_a_step_off(convention):
    generator = np.random.default_rng(1)
    for _ in range(50):
        counts = generator.integers(0, 60, 7).tolist()
        steps = reported(counts, convention)
        exact = 100 * np.array(counts) / max(sum(counts), 1)
        assert sum(steps) == 100
        assert (np.abs(np.array(steps) - exact) < 100 / convention).all()
        assert all(step * convention % 100 == 0 for step in steps)


def test_equal_remainders_go_to_the_first():
    assert reported([1, 1, 1], 100) == [34, 33, 33]
    assert reported([1, 1, 1], 200) == [33.5, 33.5, 33]
    assert reported([0, 0], 100) == [None, None]


@pytest.mark.parametrize(
    ("ends", "call"),
    [([20, 30], "above"), ([10, 19.9], "below"), ([19, 21], "open"), ([10, 20], "open"), (None, "open")],
)
def test_a_call_is_open_where_the_interval_holds_the_limit(ends, call):
    assert call_of(ends, 20) == call


def test_names_that_are_no_class_are_not_counted():
    assert counts_of(["a", "b", "a", ""], ["a", "c"]) == {"a": 2, "c": 0}
