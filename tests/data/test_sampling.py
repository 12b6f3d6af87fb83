"""Orders of an epoch: permutations, and classes as often as was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.config import balanced_share
from hemafast.data.sampling import epoch_order
from hemafast.errors import HemafastError


def _order(labels, share, epoch=0, seed=0):
    return epoch_order(np.asarray(labels), share, seed, epoch, np.random.default_rng([seed, epoch]))


@pytest.mark.parametrize(
    ("sampler", "share"), [("natural", 0), ("balanced", 1), ("mixed:0.66", 0.66), ("mixed:.5", 0.5), ("mixed:1.0", 1)]
)
def test_samplers_are_shares_of_balance(sampler, share):
    assert balanced_share(sampler) == share


@pytest.mark.parametrize("sampler", ["", "mixed", "mixed:", "mixed:1.5", "mixed:-1", "mixed:nan", "even", "Balanced"])
def test_other_samplers_are_refused(sampler):
    with pytest.raises(HemafastError, match=r"sampler") as caught:
        balanced_share(sampler)
    assert "mixed:0.66" in caught.value.remedy


def test_natural_is_a_permutation():
    labels = [0] * 30 + [1] * 5 + [4] * 2
    for epoch in range(3):
        assert sorted(_order(labels, 0.0, epoch)) == list(range(37))


COUNTS = st.lists(st.integers(1, 40), min_size=1, max_size=8)


@settings(max_examples=80, deadline=None, database=None, derandomize=True)
@given(counts=COUNTS, share=st.sampled_from([0.01, 0.33, 0.66, 1.0]), seed=st.integers(0, 5))
def test_epochs_are_as_long_as_the_split_and_classes_as_frequent_as_asked(counts, share, seed):
    labels = np.repeat(np.arange(len(counts)), counts)
    epochs = 7
    orders = [_order(labels, share, epoch, seed) for epoch in range(epochs)]
    assert all(len(order) == len(labels) for order in orders)
    drawn = np.bincount(labels[np.concatenate(orders)], minlength=len(counts))
    expected = epochs * (share * len(labels) / len(counts) + (1 - share) * np.array(counts))
    assert np.abs(drawn - expected).max() < 1 + 1e-6


@settings(max_examples=40, deadline=None, database=None, derandomize=True)
@given(counts=COUNTS, share=st.sampled_from([0.33, 1.0]))
def test_no_image_comes_again_before_all_others_of_its_class_have_come(counts, share):
    labels = np.repeat(np.arange(len(counts)), counts)
    drawn = np.concatenate([_order(labels, share, epoch) for epoch in range(9)])
    times = np.bincount(drawn, minlength=len(labels))
    for label in range(len(counts)):
        of_class = times[labels == label]
        assert of_class.max() - of_class.min() <= 1


def test_balance_is_a_matter_of_the_whole_epoch_not_of_its_parts():
    """The order is random: classes do not come in blocks."""
    labels = np.repeat(np.arange(4), [400, 100, 50, 10])
    halves = np.array_split(labels[_order(labels, 1.0)], 2)
    for half in halves:
        assert np.bincount(half, minlength=4).min() > 45


def test_orders_differ_by_seed_and_epoch_and_repeat():
    labels = np.repeat(np.arange(3), [30, 10, 5])
    for share in (0.0, 0.66, 1.0):
        assert list(_order(labels, share, 1, 1)) == list(_order(labels, share, 1, 1))
        assert list(_order(labels, share, 1, 1)) != list(_order(labels, share, 2, 1))
        assert list(_order(labels, share, 1, 1)) != list(_order(labels, share, 1, 2))
