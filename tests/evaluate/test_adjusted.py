"""Adjusted shares: the mistakes at home are taken out, and their uncertainty is added."""

import numpy as np
import pytest

from hemafast.evaluate.adjusted import adjusted_shares
from hemafast.evaluate.intervals import interval, wilson

RATES = np.array([[0.8, 0.15, 0.05], [0.1, 0.85, 0.05], [0.2, 0.2, 0.6]])
SHARES = np.array([0.6, 0.1, 0.3])


def home_of(cells):
    return np.rint(cells * RATES).astype(np.int64)


def test_mistakes_at_home_are_taken_out():
    called = np.rint(100_000 * SHARES @ RATES).astype(np.int64)
    found = adjusted_shares(called, home_of(1000), resamples=0)
    assert np.abs(called / called.sum() - SHARES).max() > 0.07
    np.testing.assert_allclose(found[0], SHARES, atol=2e-3)


def test_intervals_hold_the_shares_in_most_draws_and_plain_ones_do_not():
    generator = np.random.default_rng(0)
    inside, plain, draws = np.zeros(3), 0, 60
    for seed in range(draws):
        home = np.stack([generator.multinomial(150, row) for row in RATES])
        called = generator.multinomial(200, SHARES @ RATES)
        low, high = interval(adjusted_shares(called, home, resamples=200, seed=seed))
        inside += (low <= SHARES) & (high >= SHARES)
        low, high = wilson(int(called[2]), 200)
        plain += low <= SHARES[2] <= high
    assert (inside / draws >= 0.85).all()
    assert plain / draws < 0.4


def test_fewer_cells_at_home_make_wider_intervals():
    called = np.array([140, 40, 20])
    widths = [np.ptp(interval(adjusted_shares(called, home_of(cells))), axis=0).sum() for cells in (20, 2000)]
    assert widths[0] > 1.5 * widths[1]


def test_a_class_without_cells_at_home_is_taken_as_named():
    home = np.diag([50, 50, 0])
    found = adjusted_shares(np.array([10, 20, 10]), home, resamples=0)
    np.testing.assert_allclose(found[0], [0.25, 0.5, 0.25], atol=1e-6)


def test_shares_are_never_negative_and_add_up():
    found = adjusted_shares(np.array([0, 50, 0]), home_of(100))
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_no_cells_have_no_shares():
    assert np.isnan(adjusted_shares(np.zeros(3, np.int64), home_of(100), resamples=4)).all()


def test_a_model_without_mistakes_changes_nothing():
    found = adjusted_shares(np.array([30, 50, 20]), np.diag([100, 100, 100]), resamples=0)
    assert found[0] == pytest.approx([0.3, 0.5, 0.2])
