"""Batches before they have pixels: every image once an epoch, for any number of processes, and no lone image."""

import itertools
import threading
import time
from dataclasses import fields, replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hemafast.data.augment import POLICIES
from hemafast.data.stream import READ_AHEAD, BatchStream, Process
from hemafast.errors import HemafastError


def _stream(images, batch_size, *, shuffle=True, seed=0, policy="basic", rank=0, world_size=1, balanced=0.0):
    return BatchStream(
        labels=np.arange(images) % 3,
        batch_size=batch_size,
        packed_size=64,
        image_size=56,
        policy=POLICIES[policy],
        shuffle=shuffle,
        balanced=balanced,
        seed=seed,
        process=Process(rank, world_size),
    )


@settings(max_examples=100, deadline=None, database=None, derandomize=True)
@given(
    images=st.integers(0, 200),
    batch_size=st.integers(2, 40),
    shuffle=st.booleans(),
    epoch=st.integers(0, 9),
    world_size=st.integers(1, 5),
)
def test_an_epoch_holds_every_image_once_in_batches_that_fit(images, batch_size, shuffle, epoch, world_size):
    if shuffle and images < world_size:
        return
    ranks = [
        _stream(images, batch_size, shuffle=shuffle, rank=rank, world_size=world_size) for rank in range(world_size)
    ]
    epochs = [list(stream.epoch(epoch)) for stream in ranks]
    draws = [draw for batches in epochs for draw in batches]
    assert sorted(row for draw in draws for row in draw.rows) == list(range(images))
    assert [len(batches) for batches in epochs] == [len(stream) for stream in ranks]
    for draw in draws:
        assert 1 <= len(draw.rows) <= (max(batch_size, 4) if shuffle else batch_size)
        assert len(draw.rows) == len(draw.views.window) == len(draw.views.turn)
    if shuffle:
        assert len({len(batches) for batches in epochs}) <= 1  # or processes would wait for each other for ever
        if images >= 2 * world_size:
            assert all(len(draw.rows) >= 2 for draw in draws)


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (1, 8, [1]),
        (2, 8, [2]),
        (7, 8, [7]),
        (8, 8, [8]),
        (9, 8, [4, 5]),
        (33, 8, [8, 8, 8, 4, 5]),
        (65, 32, [32, 16, 17]),
        (2, 2, [2]),
        (3, 2, [3]),
        (7, 2, [2, 2, 3]),
        (4, 3, [2, 2]),
        (7, 3, [3, 2, 2]),
    ],
)
def test_no_training_batch_is_a_lone_image_if_there_are_two(images, batch_size, sizes):
    assert [len(draw.rows) for draw in _stream(images, batch_size).epoch(0)] == sizes


@pytest.mark.parametrize(
    ("images", "batch_size", "sizes"),
    [
        (4, 8, [(2, 2)]),
        (15, 8, [(7, 8)]),
        (16, 8, [(8, 8)]),
        (17, 8, [(4, 4), (4, 5)]),
        (19, 8, [(4, 5), (5, 5)]),
        (20, 8, [(8, 8), (2, 2)]),
        (5, 2, [(2, 3)]),
        (7, 2, [(3, 4)]),
        (11, 2, [(2, 2), (3, 4)]),
        (7, 3, [(3, 4)]),
        (9, 3, [(2, 2), (2, 3)]),
        (3, 8, [(1, 2)]),
    ],
)
def test_nor_is_it_in_one_of_two_processes(images, batch_size, sizes):
    ranks = [_stream(images, batch_size, rank=rank, world_size=2).sizes() for rank in range(2)]
    assert [(first, second) for (first, _), (second, _) in zip(*ranks, strict=True)] == sizes


@pytest.mark.parametrize("batch_size", [4, 5, 8, 32])
def test_from_a_batch_size_of_4_on_the_batches_are_those_of_version_0_1_0(batch_size):
    """Which shared the last two evenly; so the positions that it saved are valid."""
    for images, world_size in itertools.product(range(1, 100), (1, 2, 3)):
        stream = _stream(images, batch_size, world_size=world_size) if images >= world_size else None
        assert stream is None or stream.batches == stream.unmerged


def test_validation_keeps_its_batches_full():
    assert [len(draw.rows) for draw in _stream(9, 8, shuffle=False).epoch(0)] == [8, 1]


def test_too_few_images_for_the_processes_are_refused():
    with pytest.raises(HemafastError, match="3 training images are too few for 4 processes"):
        _stream(3, 8, world_size=4)


def test_a_batch_of_one_is_refused_for_training():
    with pytest.raises(HemafastError, match="batch size of 1"):
        _stream(9, 1)
    assert len(_stream(9, 1, shuffle=False)) == 9


@pytest.mark.parametrize("balanced", [0.0, 0.66])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_the_batches_of_one_with_as_many_images(balanced, world_size):
    """Two processes of batch size 8 are one of batch size 16, in images and in views."""
    alone = list(_stream(56, 8 * world_size, balanced=balanced).epoch(1))
    parts = [
        list(_stream(56, 8, rank=rank, world_size=world_size, balanced=balanced).epoch(1)) for rank in range(world_size)
    ]
    for whole, *shared in zip(alone, *parts, strict=True):
        np.testing.assert_array_equal(whole.rows, np.concatenate([part.rows for part in shared]))
        np.testing.assert_array_equal(whole.views.turn, np.concatenate([part.views.turn for part in shared]))


def test_epochs_and_seeds_differ_and_repeat():
    def rows(seed, epoch):
        return [list(draw.rows) for draw in _stream(50, 8, seed=seed).epoch(epoch)]

    assert rows(1, 0) == rows(1, 0)
    assert rows(1, 0) != rows(1, 1)
    assert rows(1, 0) != rows(2, 0)
    assert rows(1, 2) != rows(2, 1)


@pytest.mark.parametrize("first", range(8))
def test_an_epoch_may_begin_at_any_of_its_batches(first):
    stream = _stream(50, 8)
    expected = [list(draw.rows) for draw in islice(stream.epoch(2), first, None)]
    assert [list(draw.rows) for draw in stream.epoch(2, first)] == expected


def test_order_does_not_depend_on_the_batch_size_nor_the_policy():
    def rows(**options):
        stream = _stream(50, **options)
        return np.concatenate([draw.rows for draw in stream.epoch(3)])

    np.testing.assert_array_equal(rows(batch_size=8), rows(batch_size=50))
    np.testing.assert_array_equal(rows(batch_size=8), rows(batch_size=8, policy="none"))


def test_a_view_belongs_to_its_position_whatever_the_batch_size():
    def windows(batch_size):
        return np.concatenate([draw.views.window for draw in _stream(50, batch_size).epoch(3)])

    np.testing.assert_array_equal(windows(8), windows(13))


# Epoch after epoch


def _plain(draws):
    return [[draw.rows, *(getattr(draw.views, field.name) for field in fields(draw.views))] for draw in draws]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("images", "first"), [(50, 0), (50, 5), (9, 1)])
def test_epochs_drawn_ahead_are_those_drawn_one_by_one(policy, images, first):
    stream = _stream(images, 8, policy=policy, seed=3, balanced=0.66)
    expected = [*stream.epoch(4, first), *stream.epoch(5), *stream.epoch(6)]
    np.testing.assert_equal(_plain(islice(stream.onwards(4, first), len(expected))), _plain(expected))


@pytest.fixture
def drawn(monkeypatch):
    """(epoch, name of the thread) of every epoch that is drawn."""
    seen, draw = [], BatchStream._draw

    def noting(stream, epoch):
        seen.append((epoch, threading.current_thread().name))
        return draw(stream, epoch)

    monkeypatch.setattr(BatchStream, "_draw", noting)
    return seen


def _soon(condition) -> bool:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


def _waiting_draws():
    return [thread for thread in threading.enumerate() if thread.name.startswith("draws")]


def test_the_next_epoch_is_drawn_beside_this_one_and_not_before_its_first_batch_is_there(drawn):
    """A feed has read READ_AHEAD batches when it delivers the first, and reads another for each that it delivers."""
    running, here = _stream(50, 8).onwards(0), threading.current_thread().name
    list(islice(running, READ_AHEAD))
    time.sleep(0.01)
    assert drawn == [(0, here)]
    next(running)
    assert _soon(lambda: len(drawn) == 2)
    assert drawn[1][0] == 1
    assert drawn[1][1] != here


def test_an_epoch_too_short_to_draw_beside_it_is_followed_all_the_same(drawn):
    list(islice(_stream(8, 8).onwards(0), 3))
    assert drawn == [(epoch, threading.current_thread().name) for epoch in range(3)]


def test_what_goes_wrong_while_drawing_ahead_comes_out_where_the_epoch_would_begin(monkeypatch):
    draw = BatchStream._draw

    def failing(stream, epoch):
        if epoch == 1:
            raise MemoryError("too many views")
        return draw(stream, epoch)

    monkeypatch.setattr(BatchStream, "_draw", failing)
    running = _stream(50, 8).onwards(0)
    assert len(list(islice(running, 7))) == 7
    with pytest.raises(MemoryError, match="too many views"):
        next(running)


def test_no_thread_is_left_of_batches_that_nobody_reads_on(drawn):
    running = _stream(50, 8).onwards(0)
    list(islice(running, READ_AHEAD + 1))
    del running
    assert _soon(lambda: len(drawn) == 2)
    assert _soon(lambda: not _waiting_draws())


def test_only_epochs_without_order_and_changes_repeat():
    assert _stream(9, 8, shuffle=False, policy="none").repeats
    assert not _stream(9, 8, shuffle=False).repeats
    assert not _stream(9, 8, policy="none").repeats


@settings(max_examples=60, deadline=None, database=None, derandomize=True)
@given(
    images=st.integers(1, 120),
    batch_size=st.integers(2, 20),
    views=st.integers(2, 3),
    epoch=st.integers(0, 3),
    world_size=st.integers(1, 4),
)
def test_with_several_views_every_process_has_as_many_images_of_a_batch(images, batch_size, views, epoch, world_size):
    if images < world_size:
        return
    ranks = [
        replace(_stream(images, batch_size, rank=rank, world_size=world_size), views=views)
        for rank in range(world_size)
    ]
    seen = []
    for batches in zip(*(stream.epoch(epoch) for stream in ranks), strict=True):
        assert len({len(draw.rows) for draw in batches}) == 1
        for draw in batches:
            rows = draw.rows.reshape(views, -1)
            assert (rows == rows[0]).all()
            assert len(draw.views.turn) == draw.rows.size
            assert all(getattr(draw.views, field.name).flags.c_contiguous for field in fields(draw.views))
            seen += rows[0].tolist()
    assert len(seen) == len(set(seen)) == images - images % world_size
    assert [whole for _, whole in ranks[0].sizes()] == [world_size * mine for mine, _ in ranks[0].sizes()]
