"""Members are chosen for what they add at their cost, and weights make the truth most probable."""

import numpy as np
import pytest

from hemafast.deploy.weigh import best_members, fit_weights, log_loss, score_of, worth_their_cost

LABELS = np.tile(np.arange(3), 40)


def opinion(seed, good, sure=0.8):
    """Probabilities of a member that is right about a share `good` of the images."""
    generator = np.random.default_rng(seed)
    wrong = (LABELS + generator.integers(1, 3, len(LABELS))) % 3
    said = np.where(generator.uniform(size=len(LABELS)) < good, LABELS, wrong)
    return np.full((len(LABELS), 3), (1 - sure) / 2) + np.eye(3)[said] * (sure - (1 - sure) / 2)


@pytest.fixture
def opinions():
    return np.stack([opinion(1, 0.8), opinion(2, 0.8), opinion(3, 0.8), opinion(4, 0.4)])


def test_weights_add_up_and_no_others_make_the_truth_more_probable(opinions):
    weights = fit_weights(opinions, LABELS)
    assert weights.sum() == pytest.approx(1)
    assert weights[3] == weights.min()
    best = log_loss(np.tensordot(weights, opinions, 1), LABELS)
    generator = np.random.default_rng(0)
    for _ in range(200):
        other = generator.dirichlet(np.ones(4))
        assert log_loss(np.tensordot(other, opinions, 1), LABELS) >= best - 1e-7


def test_weights_of_members_that_are_the_same_stay_equal():
    same = opinion(1, 0.8)
    np.testing.assert_allclose(fit_weights(np.stack([same, same]), LABELS), 0.5)


def test_a_probability_of_zero_for_the_truth_is_borne():
    certain = np.eye(3)[LABELS]
    blind = np.eye(3)[(LABELS + 1) % 3]
    np.testing.assert_allclose(fit_weights(np.stack([certain, blind]), LABELS), [1, 0], atol=1e-6)


def test_members_below_one_percent_are_left_out():
    places, weights = worth_their_cost(np.array([0.7, 0.005, 0.295]))
    assert places == (0, 2)
    assert weights.sum() == pytest.approx(1)
    assert worth_their_cost(np.full(200, 0.005))[0] == tuple(range(200))


@pytest.mark.parametrize(("most", "count"), [(1.0, 1), (2.0, 2), (3.0, 3)])
def test_the_best_subset_stays_within_its_cost(opinions, most, count):
    chosen = best_members(opinions, LABELS, [1.0] * 4, most)
    assert len(chosen) <= count
    tried = [(0,), (1,), (2,), (3,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    possible = [score_of(opinions[list(one)].mean(0), LABELS) for one in tried if len(one) <= count]
    assert score_of(opinions[list(chosen)].mean(0), LABELS) >= max(possible)


def test_of_equal_scores_the_cheaper_wins():
    same = opinion(1, 0.8)
    assert best_members(np.stack([same, same, same]), LABELS, [3.0, 1.0, 2.0], 10) == (1,)


def test_a_cheapest_member_is_taken_even_above_the_cost(opinions):
    assert best_members(opinions, LABELS, [4.0, 3.0, 5.0, 6.0], 1.0) == (1,)


def test_equal_costs_may_differ_in_the_last_digits(opinions):
    cost = 0.1 + 0.2
    assert len(best_members(opinions[:3], LABELS, [cost] * 3, 3 * 0.3)) == 3
