"""Scores: the same as scikit-learn's, whatever classes are absent."""

import math
import warnings

import numpy as np
import pytest
from sklearn import metrics as reference

from hemafast.metrics import accuracy, count_confusion, macro_f1, per_class_f1

CLASSES = 6


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


def test_a_class_that_is_never_found_scores_nothing():
    confusion = np.array([[0, 5], [0, 5]])
    np.testing.assert_allclose(per_class_f1(confusion), [0, 2 / 3])


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
    np.testing.assert_array_equal(count_confusion(np.array([], np.int64), np.array([], np.int64), 3), empty)


def test_a_stack_of_matrices_is_scored_matrix_by_matrix():
    stack = np.stack([count_confusion(*_answers(seed), CLASSES) for seed in range(3)])
    np.testing.assert_array_equal(per_class_f1(stack), [per_class_f1(confusion) for confusion in stack])
