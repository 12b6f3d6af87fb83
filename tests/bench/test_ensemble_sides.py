"""The comparison of ensembles: means and weights are those of `hemafast ensemble`, and gains are paired."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import ensembles as sides  # a script beside the package, not a part of it

LABELS = np.tile(np.arange(3), 20)
CHOOSES = np.arange(60) < 30


def answers(seed, good):
    generator = np.random.default_rng(seed)
    said = np.where(generator.uniform(size=60) < good, LABELS, (LABELS + 1) % 3)
    return sides.Answers(LABELS, np.full((60, 3), 0.1) + 0.7 * np.eye(3)[said], CHOOSES)


@pytest.fixture
def alone():
    return [{sides.HOME: answers(seed, good)} for seed, good in ((1, 0.9), (2, 0.9), (3, 0.2))]


def test_the_mean_is_that_of_the_probabilities(alone):
    mean = sides.averaged(alone, [0.5, 0.5, 0.0])[sides.HOME]
    first, second = (one[sides.HOME].probabilities for one in alone[:2])
    np.testing.assert_allclose(mean.probabilities, (first + second) / 2)
    assert mean.labels is LABELS


def test_weights_are_fitted_on_one_half_alone(alone):
    at_home = [one[sides.HOME] for one in alone]
    weights = sides.weights_of(at_home)
    assert sum(weights) == pytest.approx(1)
    assert weights[2] == min(weights)
    spoiled = [one.probabilities.copy() for one in at_home]
    for one in spoiled:
        one[~CHOOSES] = one[~CHOOSES][:, ::-1]
    others = [sides.Answers(LABELS, one, CHOOSES) for one in spoiled]
    assert sides.weights_of(others) == weights


def test_the_best_two_are_taken_by_one_half_alone(alone):
    at_home = [one[sides.HOME] for one in alone]
    two = sides.best_two(at_home)
    assert two[2] == 0
    assert sum(two) == pytest.approx(1)
    others = [sides.Answers(LABELS, np.where(CHOOSES[:, None], one.probabilities, 1 / 3), CHOOSES) for one in at_home]
    assert sides.best_two(others) == two


def test_the_difference_of_a_model_to_itself_is_none(alone):
    scores = alone[0][sides.HOME].resampled()
    found = sides.plain({"lab": scores}, [{"lab": scores}, {"lab": scores}])["lab"]
    assert found["difference"] == {"macro_f1": 0.0, "ci95": [0.0, 0.0]}
    assert found["ci95"][0] <= found["macro_f1"] <= found["ci95"][1]


def test_a_soup_costs_as_one_and_members_without_weight_cost_nothing():
    made = {"members": [{"images_per_second": 100.0}] * 3, "images_per_second": 100.0}
    assert sides.rates(made, {"fitted": [0.5, 0.5, 0.0]}) == pytest.approx(
        {"one seed": 100, "mean": 100 / 3, "fitted": 50, "soup": 100}
    )


def test_the_table_has_a_row_for_each_side_and_says_where_weights_come_from(alone):
    scores = [{name: one.resampled() for name, one in found.items()} for found in alone]
    result = {
        "command": "python benchmarks/ensembles.py",
        "machine": {"cores": "2", "processor": "a processor", "torch": "2"},
        "data": {sides.HOME: {}},
        "seeds": {"1": {}, "2": {}, "3": {}},
        "alone": {sides.HOME: {"mean": 0.8, "min": 0.7, "max": 0.9}},
        "images_per_cpu_second": {"one seed": 90.0, "mean": 30.0, "fitted": 45.0},
        "sides": {
            "mean": {"scores": sides.plain(scores[0], scores)},
            "fitted": {"scores": sides.plain(scores[1], scores), "fitted_on": 30},
            "5 folds": {"scores": {}},
        },
    }
    text = sides.tables({"ensembles": result})["ensembles"]
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:5]] == ["one seed", "mean", "fitted"]
    assert "| 5 folds | none held out |" in text
    assert "fitted on 30 of the validation images" in text and "| 45 |" in text
