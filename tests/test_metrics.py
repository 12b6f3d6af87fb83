"""Scores: the same as scikit-learn's, whatever classes are absent."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from hemafast.metrics import accuracy, class_scores, count_confusion, macro_f1, macro_f1_interval, per_class_f1

CLASSES = 6
NAMES = tuple("abcdef")


def _answers(seed: int, *, images: int = 300, present=range(CLASSES), skill: float = 0.6):
    generator = np.random.default_rng(seed)
    actual = generator.choice(list(present), images)
    guess = generator.integers(0, CLASSES, images)
    return actual, np.where(generator.random(images) < skill, actual, guess)


CASES = [(seed, present) for seed in range(4) for present in (range(6), (0, 2, 5), (3,), (1, 4))]


@pytest.mark.parametrize(("seed", "present"), CASES)
def test_scores_are_those_of_scikit_learn(seed, present):
    actual, predicted = _answers(seed, present=present)
    confusion = count_confusion(actual, predicted, CLASSES)
    np.testing.assert_array_equal(confusion, reference.confusion_matrix(actual, predicted, labels=list(range(CLASSES))))
    there = sorted(set(actual))
    expected = reference.f1_score(actual, predicted, labels=there, average=None, zero_division=0)
    np.testing.assert_allclose(per_class_f1(confusion)[there], expected)
    assert np.isnan(np.delete(per_class_f1(confusion), there)).all()
    assert macro_f1(confusion) == pytest.approx(
        reference.f1_score(actual, predicted, labels=there, average="macro", zero_division=0)
    )
    assert accuracy(confusion) == pytest.approx(reference.accuracy_score(actual, predicted))


@pytest.mark.parametrize(("seed", "present"), CASES)
def test_scores_of_each_class_are_those_of_scikit_learn(seed, present):
    actual, predicted = _answers(seed, present=present)
    scores = class_scores(count_confusion(actual, predicted, CLASSES), NAMES)
    there = sorted(set(actual))
    assert list(scores) == [NAMES[label] for label in there]
    precision, recall, f1, support = reference.precision_recall_fscore_support(
        actual, predicted, labels=there, zero_division=0
    )
    for position, label in enumerate(there):
        score = scores[NAMES[label]]
        assert (score.images, score.recall, score.f1) == pytest.approx(
            (support[position], recall[position], f1[position])
        )
        assert (score.precision or 0) == pytest.approx(precision[position])


def test_a_class_that_is_never_found_scores_nothing():
    confusion = np.array([[0, 5], [0, 5]])
    np.testing.assert_allclose(per_class_f1(confusion), [0, 2 / 3])
    assert class_scores(confusion, ("a", "b"))["a"].precision is None


def test_a_class_without_images_costs_those_that_are_called_by_its_name():
    confusion = np.array([[8, 2], [0, 0]])
    assert macro_f1(confusion) == pytest.approx(16 / 18)


def test_without_images_there_is_no_score_and_no_warning():
    empty = np.zeros((3, 3), np.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(macro_f1(empty))
        assert math.isnan(accuracy(empty))
        assert np.isnan(per_class_f1(empty)).all()
        assert all(math.isnan(end) for end in macro_f1_interval(empty))
        assert class_scores(empty, ("a", "b", "c")) == {}
    np.testing.assert_array_equal(count_confusion(np.array([], np.int64), np.array([], np.int64), 3), empty)


def test_a_stack_of_matrices_is_scored_matrix_by_matrix():
    stack = np.stack([count_confusion(*_answers(seed), CLASSES) for seed in range(3)])
    np.testing.assert_array_equal(per_class_f1(stack), [per_class_f1(confusion) for confusion in stack])


@pytest.mark.parametrize(("seed", "present"), [case for case in CASES if len(case[1]) > 1])
def test_the_interval_holds_the_score(seed, present):
    confusion = count_confusion(*_answers(seed, present=present), CLASSES)
    low, high = macro_f1_interval(confusion)
    assert 0 <= low < macro_f1(confusion) < high <= 1


def test_the_interval_narrows_with_more_images():
    widths = []
    for images in (50, 500, 5000):
        low, high = macro_f1_interval(count_confusion(*_answers(0, images=images), CLASSES))
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_the_interval_covers_what_sampling_the_images_gives():
    actual, predicted = _answers(3)
    generator = np.random.default_rng(0)
    draws = [generator.integers(0, len(actual), len(actual)) for _ in range(1000)]
    scores = [macro_f1(count_confusion(actual[rows], predicted[rows], CLASSES)) for rows in draws]
    found = macro_f1_interval(count_confusion(actual, predicted, CLASSES))
    np.testing.assert_allclose(found, np.percentile(scores, [2.5, 97.5]), atol=0.01)


def test_the_interval_is_seeded():
    confusion = count_confusion(*_answers(0), CLASSES)
    assert macro_f1_interval(confusion) == macro_f1_interval(confusion)
    assert macro_f1_interval(confusion, seed=1) != macro_f1_interval(confusion, seed=2)


def test_a_perfect_score_is_certain():
    assert macro_f1_interval(np.diag([5, 3, 9])) == (1.0, 1.0)


@pytest.mark.parametrize("images", [1, 2, 3])
def test_an_interval_of_few_images_stays_a_number_without_warnings(images):
    confusion = np.zeros((4, 4), np.int64)
    confusion[0, 0], confusion[1, 2] = 1, images - 1
    low, high = macro_f1_interval(confusion)
    assert 0 <= low <= high <= 1
