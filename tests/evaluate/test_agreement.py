"""Agreement of differentials with labels."""

import numpy as np
import pytest

from hemafast.evaluate.agreement import agreement, distances

KNOWN = np.array([[60.0, 30, 10], [50, 40, 10], [70, 20, 10], [40, 40, 20]])


def test_equal_percentages_agree():
    found = agreement(KNOWN, KNOWN, "abc")
    assert found["distance"] == 0
    assert found["ci95"] == [0, 0]
    assert found["classes"]["a"] == {"error": 0, "bias": 0, "limits": [0, 0]}


def test_the_distance_is_the_share_of_cells_that_would_change_their_class():
    np.testing.assert_allclose(distances(np.array([[50.0, 30, 20]]), np.array([[60.0, 30, 10]])), [10])


def test_bias_and_limits_are_those_of_bland_and_altman():
    moved = KNOWN + np.array([[4.0, -4, 0], [6, -6, 0], [5, -5, 0], [5, -5, 0]])
    found = agreement(moved, KNOWN, "abc")["classes"]["a"]
    spread = 1.96 * np.std([4, 6, 5, 5], ddof=1)
    assert found["bias"] == pytest.approx(5)
    assert found["error"] == pytest.approx(5)
    np.testing.assert_allclose(found["limits"], [5 - spread, 5 + spread])


def test_one_patient_has_no_interval_and_two_have_no_limits():
    assert agreement(KNOWN[:1], KNOWN[:1], "abc")["ci95"] is None
    assert agreement(KNOWN[:2], KNOWN[:2], "abc")["classes"]["a"]["limits"] is None
