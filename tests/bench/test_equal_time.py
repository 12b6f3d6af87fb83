"""The race for the score: how two sides are judged by their answers."""

import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import f1_score

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import equal_time  # a script beside the package, not a part of it

CLASSES = ("basophil", "monocyte", "myelocyte")
FILES = [f"{number:03d}.jpg" for number in range(90)]


def answers(right, seed):
    """The truth, and answers of which a share is `right`."""
    generator = np.random.default_rng(seed)
    actual = {file: CLASSES[number % 3] for number, file in enumerate(FILES)}
    return {
        file: label if generator.random() < right else str(generator.choice(CLASSES)) for file, label in actual.items()
    }


ACTUAL = answers(1.0, 0)


def by_sklearn(found):
    return f1_score([ACTUAL[file] for file in FILES], [found[file] for file in FILES], average="macro")


def test_sides_are_judged_by_the_mean_over_their_seeds():
    runs = {
        "hemafast": [answers(0.9, seed) for seed in (1, 2)],
        "reference": [answers(0.5, seed) for seed in (3, 4)],
    }
    found = equal_time.judged(ACTUAL, runs)
    assert (found["images"], found["classes"]) == (90, 3)
    for side, seeds in runs.items():
        assert found["seeds"][side] == pytest.approx([by_sklearn(one) for one in seeds])
        mean, (low, high) = found["macro_f1"][side]["mean"], found["macro_f1"][side]["ci95"]
        assert mean == pytest.approx(np.mean(found["seeds"][side]))
        assert low < mean < high
    ahead = found["ahead"]
    assert ahead["mean"] == pytest.approx(
        found["macro_f1"]["hemafast"]["mean"] - found["macro_f1"]["reference"]["mean"]
    )
    assert 0 < ahead["ci95"][0] < ahead["mean"] < ahead["ci95"][1]


def test_the_same_answers_are_ahead_by_nothing_whatever_the_images():
    same = [answers(0.7, 5)]
    found = equal_time.judged(ACTUAL, {"hemafast": same, "reference": same})
    assert found["ahead"] == {"mean": 0, "ci95": [0, 0]}


def test_only_seeds_that_both_sides_have_count():
    runs = {"hemafast": [answers(0.9, 1), answers(0.1, 2)], "reference": [answers(0.5, 3)]}
    found = equal_time.judged(ACTUAL, runs)
    assert {side: len(seeds) for side, seeds in found["seeds"].items()} == {"hemafast": 1, "reference": 1}


def test_an_answer_that_is_no_class_of_the_truth_is_an_error_of_that_image():
    wrong = {**ACTUAL, FILES[0]: "myeloblast"}
    found = equal_time.judged(ACTUAL, {"hemafast": [ACTUAL], "reference": [wrong]})
    assert found["classes"] == 3
    assert found["seeds"]["hemafast"] == [1.0]
    assert found["seeds"]["reference"][0] < 1
