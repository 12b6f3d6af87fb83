"""The quality of labels: what is said for them, and against them."""

import numpy as np

from hemafast.evaluate.suspects import label_quality


def test_the_quality_of_a_label_is_its_margin_less_half_of_the_median_of_its_class():
    scores = np.array([[0.7, 0.2, 0.1], [0.6, 0.4, 0.0], [0.1, 0.9, 0.0], [0.7, 0.2, 0.1]], np.float32)
    found = label_quality(np.array([0, 0, 0, 2]), scores)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [0.4, 0.1, -0.9, -0.3], rtol=1e-6)  # medians 0.2 and -0.6


def test_of_equal_margins_that_of_the_easier_class_is_doubted_first():
    scores = np.array([[1, 0], [1, 0], [0.5, 0.5], [0.4, 0.6], [0.4, 0.6], [0.5, 0.5]])
    found = label_quality(np.array([0, 0, 0, 1, 1, 1]), scores)
    assert found[2] < found[5]


def test_a_sure_answer_for_another_class_is_worse_than_a_label_that_nothing_speaks_for():
    sure, unsure = np.array([[0.1, 0.9, 0.0]]), np.array([[0.0, 0.4, 0.6]])
    assert label_quality(np.array([0]), sure) < label_quality(np.array([0]), unsure)
