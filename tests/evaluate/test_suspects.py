"""The quality of labels: the probability that a model gives them."""

import numpy as np

from hemafast.evaluate.suspects import label_quality


def test_the_quality_of_a_label_is_its_probability():
    probabilities = np.array([[0.7, 0.2, 0.1], [0.7, 0.2, 0.1], [0.0, 1.0, 0.0]], np.float32)
    found = label_quality(np.array([0, 2, 1]), probabilities)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [0.7, 0.1, 1], rtol=1e-6)
