"""Batches at fixed addresses."""

import torch

from hemafast.data.augment import POLICIES
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.static import BUFFERS, static_batches


def _batches(samples):
    shape = GraphShape("cpu", "packed", 64, 56, 8, 1)
    return train_loader(samples, policy=POLICIES["basic"], seed=0, shape=shape).epoch(0)


def test_static_batches_are_the_same_batches(train_samples):
    for one, other in zip(_batches(train_samples), static_batches(_batches(train_samples), 8), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.rows, other.rows)
        assert other.images.is_contiguous(memory_format=torch.channels_last)


def test_they_alternate_between_two_places_the_ragged_one_too(train_samples):
    addresses = [
        (batch.images.data_ptr(), batch.labels.data_ptr()) for batch in static_batches(_batches(train_samples), 8)
    ]
    assert len(addresses) == 6
    assert addresses == addresses[:BUFFERS] * 3
    assert len(set(addresses)) == BUFFERS


def test_a_batch_is_valid_until_two_more_have_been_asked_for(train_samples):
    before = None
    for batch in static_batches(_batches(train_samples), 8):
        if before is not None:
            assert torch.equal(*before)
        before = batch.images, batch.images.clone()


def test_nothing_comes_of_nothing():
    assert list(static_batches([], 8)) == []
