"""Batches before they have pixels: every image once an epoch, no lone image to train on."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.data.augment import POLICIES
from hemafast.data.stream import BatchStream


def _stream(images, batch_size, *, shuffle=True, seed=0, policy="basic"):
    return BatchStream(images, batch_size, 64, POLICIES[policy], shuffle, seed)


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(images=st.integers(0, 200), batch_size=st.integers(2, 70), shuffle=st.booleans(), epoch=st.integers(0, 9))
def test_an_epoch_holds_every_image_once_in_batches_that_fit(images, batch_size, shuffle, epoch):
    stream = _stream(images, batch_size, shuffle=shuffle)
    draws = list(stream.epoch(epoch))
    assert len(draws) == len(stream)
    rows = np.concatenate([draw.rows for draw in draws]) if draws else np.array([])
    assert sorted(rows) == list(range(images))
    for draw in draws:
        assert 1 <= len(draw.rows) <= batch_size
        assert len(draw.rows) == len(draw.views.corner) == len(draw.views.symmetry)


@pytest.mark.parametrize(("images", "batch_size"), [(9, 8), (33, 8), (4, 3), (7, 3), (65, 32)])
def test_no_training_batch_is_a_lone_image(images, batch_size):
    sizes = [len(draw.rows) for draw in _stream(images, batch_size).epoch(0)]
    assert min(sizes) >= 2
    assert len(sizes) == -(-images // batch_size)


def test_validation_keeps_its_batches_full():
    assert [len(draw.rows) for draw in _stream(9, 8, shuffle=False).epoch(0)] == [8, 1]


def test_epochs_and_seeds_differ_and_repeat():
    def rows(seed, epoch):
        return [list(draw.rows) for draw in _stream(50, 8, seed=seed).epoch(epoch)]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)
    assert rows(1, 2) != rows(2, 1)


def test_order_does_not_depend_on_the_batch_size_nor_the_policy():
    def rows(**options):
        stream = _stream(50, **options)
        return np.concatenate([draw.rows for draw in stream.epoch(3)])

    np.testing.assert_array_equal(rows(batch_size=8), rows(batch_size=50))
    np.testing.assert_array_equal(rows(batch_size=8), rows(batch_size=8, policy="none"))


def test_a_view_belongs_to_its_position_whatever_the_batch_size():
    def corners(batch_size):
        return np.concatenate([draw.views.corner for draw in _stream(50, batch_size).epoch(3)])

    np.testing.assert_array_equal(corners(8), corners(13))
