"""Sets hold the true class of nine cells in ten, class by class, and say so where too few cells are known."""

import numpy as np
import pytest

from hemafast.evaluate.conformal import fit_sets, in_sets, set_names, set_scores


def answers(images, seed, classes=3, strength=1.5):
    """Labels of unequal classes, and probabilities that are often wrong."""
    draw = np.random.default_rng(seed)
    labels = draw.choice(classes, images, p=[0.7, 0.2, 0.1])
    logits = draw.normal(0, 1, (images, classes)) + strength * np.eye(classes)[labels]
    powers = np.exp(logits)
    return labels, powers / powers.sum(axis=1, keepdims=True)


def test_each_class_is_covered_as_promised_and_not_by_sets_of_everything():
    covered, sizes = [], []
    for seed in range(60):
        thresholds = fit_sets(*answers(300, seed))
        labels, probabilities = answers(1000, 1000 + seed)
        scores = set_scores(labels, in_sets(probabilities, thresholds), "abc")
        covered.append([scores["per_class"][name]["coverage"] for name in "abc"])
        sizes.append(scores["mean_size"])
    assert np.abs(np.mean(covered, axis=0) - 0.9).max() < 0.03
    assert 1 < np.mean(sizes) < 2.5


@pytest.mark.parametrize("images", [1, 8])
def test_a_class_with_too_few_cells_is_in_every_set(images):
    labels = np.repeat([0, 1], [50, images])
    probabilities = np.tile([0.6, 0.4], (len(labels), 1))
    thresholds = fit_sets(labels, probabilities)
    assert thresholds[1] == 0
    assert in_sets(np.array([[1.0, 0.0]]), thresholds).tolist() == [[True, True]]


def test_nine_cells_are_enough_and_the_least_sure_of_them_sets_the_threshold():
    certain = np.linspace(0.1, 0.9, 9)
    thresholds = fit_sets(np.zeros(9, np.int64), np.stack([certain, 1 - certain], axis=1))
    assert thresholds[0] == pytest.approx(0.1)


def test_a_class_that_no_cell_calibrated_is_in_no_set():
    thresholds = fit_sets(np.zeros(20, np.int64), np.tile([0.7, 0.3], (20, 1)))
    assert thresholds[1] is None
    assert in_sets(np.array([[0.0, 1.0]]), thresholds).tolist() == [[False, False]]


def test_names_come_by_probability_and_no_class_fits_an_image_without_an_answer():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.05, 0.05, 0.9], [0.34, 0.33, 0.33], [np.nan] * 3])
    assert set_names(probabilities, "abc", (0.1, 0.4, 0.25)) == ["b;c;a", "c", "a;c", ""]
    assert set_names(probabilities[1:2], "abc", (0.1, 0.4, 0.95)) == [""]


def test_scores_count_what_is_covered():
    labels = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4]])
    scores = set_scores(labels, in_sets(probabilities, (0.5, 0.5)), "ab")
    assert (scores["coverage"], scores["mean_size"], scores["empty"], scores["images"]) == (0.5, 1.0, 0.0, 4)
    assert scores["per_class"]["a"]["coverage"] == 0.5
    low, high = scores["per_class"]["a"]["ci95"]
    assert 0 < low < 0.5 < high < 1


def test_there_are_no_scores_without_sets_or_images():
    labels, probabilities = answers(5, 0)
    assert set_scores(labels, None, "abc") is None
    assert set_scores(labels[:0], in_sets(probabilities[:0], (0.1, 0.1, 0.1)), "abc") is None
