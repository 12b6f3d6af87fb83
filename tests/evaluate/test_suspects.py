"""The quality of labels: against the formula by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from hemafast.evaluate.suspects import label_quality


def test_the_quality_is_the_share_of_the_label_beside_the_likeliest_other_class():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    found = label_quality(np.array([0, 2, 1, 0]), probabilities)
    assert found.tolist() == pytest.approx([0.7 / 0.9, 0.1 / 0.8, 1, 0])


@given(
    arrays.arrays(np.float64, (5, 4), elements=st.floats(0.01, 1)), st.lists(st.integers(0, 3), min_size=5, max_size=5)
)
def test_the_likeliest_class_has_the_best_quality_and_all_lie_between_0_and_1(weights, labels):
    probabilities = weights / weights.sum(axis=1, keepdims=True)
    found = label_quality(np.array(labels), probabilities)
    assert ((found >= 0) & (found <= 1)).all()
    best = label_quality(probabilities.argmax(axis=1), probabilities)
    assert (found <= best).all()
    assert (best >= 0.5).all()


def test_probabilities_stay_as_they_were():
    probabilities = np.full((2, 2), 0.5, np.float32)
    label_quality(np.array([0, 1]), probabilities)
    assert (probabilities == 0.5).all()
