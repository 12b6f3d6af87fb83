"""Batches: the right pixels, every image once an epoch, the same ones on every run and after every restart."""

import inspect
import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from hemafast.data import feed
from hemafast.data import source as source_module
from hemafast.data.augment import POLICIES
from hemafast.data.batch import place
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader, train_loader
from hemafast.data.stream import Process
from hemafast.errors import HemafastError

PACKED, EXACT = 64, 56


def _shape(*, source="packed", image_size=EXACT, batch_size=8, threads=1):
    return GraphShape("cpu", source, PACKED, image_size, batch_size, threads)


def _train(samples, *, policy="basic", seed=1, sampler="natural", process=None, **shape):
    return train_loader(
        samples,
        policy=POLICIES[policy],
        seed=seed,
        shape=_shape(**shape),
        sampler=sampler,
        process=process or Process(),
    )


def _pixels(batch) -> np.ndarray:
    return batch.images.permute(0, 2, 3, 1).numpy()


def _same(first, second) -> bool:
    """Whether two lists of batches are bit for bit the same."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(getattr(a, name), getattr(b, name))
        for a, b in zip(first, second, strict=True)
        for name in ("images", "labels", "rows")
    )


def _turn(window: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """A symmetry of the square in numpy: out(x', y') = in(A (x', y')), about the centre."""
    if matrix[0, 0]:
        return window[:: int(matrix[1, 1]), :: int(matrix[0, 0])]
    return window.transpose(1, 0, 2)[:: int(matrix[0, 1]), :: int(matrix[1, 0])]


# Pixels


def test_basic_is_a_crop_and_a_symmetry_pixel_for_pixel(train_samples):
    loader = _train(train_samples)
    seen = set()
    for epoch in range(3):
        for batch, draw in zip(loader.epoch(epoch), loader._stream.epoch(epoch), strict=True):
            for image, row, window, turn in zip(
                _pixels(batch), draw.rows, draw.views.window.astype(int), draw.views.turn, strict=True
            ):
                top, left, bottom, right = window
                cut = train_samples.packed[row][top:bottom, left:right]
                np.testing.assert_array_equal(image, _turn(cut, turn[:, :2]))
                seen.add(turn.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("make", [lambda s: eval_loader(s, shape=_shape()), lambda s: _train(s, policy="none")])
def test_without_a_policy_it_is_the_centre(train_samples, make):
    for batch in make(train_samples).epoch(0):
        np.testing.assert_array_equal(_pixels(batch), np.asarray(train_samples.packed)[batch.rows.numpy(), 4:60, 4:60])


@pytest.mark.parametrize("image_size", [40, 57, 96])
def test_another_size_is_the_window_scaled(val_samples, image_size):
    for batch in eval_loader(val_samples, shape=_shape(image_size=image_size)).epoch(0):
        assert batch.images.shape[1:] == (3, image_size, image_size)
        for image, row in zip(_pixels(batch), batch.rows, strict=True):
            square = Image.fromarray(val_samples.packed[row])
            expected = square.resize((image_size, image_size), Image.Resampling.BILINEAR, box=(4, 4, 60, 60))
            assert np.abs(image.astype(int) - np.asarray(expected)).mean() < 1


@pytest.mark.parametrize("source", ["packed", "files"])
@pytest.mark.parametrize("policy", ["seed", "lineage"])
def test_a_scaled_view_is_its_window_turned(train_samples, policy, source):
    loader = _train(train_samples, policy=policy, image_size=40, source=source)
    without_stain = replace(POLICIES[policy], stain=0)
    loader._stream = replace(loader._stream, policy=without_stain)
    batch, draw = next(iter(loader.epoch(0))), next(loader._stream.epoch(0))
    for image, row, window, turn in zip(_pixels(batch), draw.rows, draw.views.window, draw.views.turn, strict=True):
        top, left, bottom, right = (float(edge) for edge in window)
        square = Image.fromarray(train_samples.packed[row])
        scaled = square.resize((40, 40), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
        expected = scaled.transform((40, 40), Image.Transform.AFFINE, tuple(turn.flatten()))
        # From a file, a view is scaled once; the packed square has been scaled before.
        assert np.abs(image.astype(int) - np.asarray(expected)).mean() < (1.5 if source == "packed" else 6)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("pair", [("packed", "resident"), ("files", "webdataset")], ids="-".join)
def test_sources_of_one_kind_give_the_same_batches(tarred_samples, policy, pair):
    first, second = (_train(tarred_samples, policy=policy, source=source) for source in pair)
    assert _same(first.epoch(0), second.epoch(0))
    assert _same(first.epoch(1), second.epoch(1))


@pytest.mark.parametrize("policy", ["basic", "none"])
def test_packed_pixels_and_files_differ_by_rounding_where_nothing_else_is_scaled(train_samples, policy):
    """A window of a square that has its scale is the same stretch of the file."""
    packed, files = (_train(train_samples, policy=policy, source=source) for source in ("packed", "files"))
    for one, other in zip(packed.epoch(0), files.epoch(0), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert torch.equal(one.labels, other.labels)
        difference = np.abs(_pixels(one).astype(int) - _pixels(other))
        assert difference.max() <= 2
        assert difference.mean() < 0.5


@pytest.mark.parametrize("policy", ["seed", "lineage", "none"])
@pytest.mark.parametrize("image_size", [40, 12])
def test_views_of_decoded_parts_are_those_of_whole_images(train_samples, policy, image_size, monkeypatch):
    parts = list(_train(train_samples, policy=policy, image_size=image_size, source="files").epoch(0))
    inputs = GraphShape.inputs
    monkeypatch.setattr(GraphShape, "inputs", lambda *of: tuple(name for name in inputs(*of) if name != "part"))
    assert _same(parts, _train(train_samples, policy=policy, image_size=image_size, source="files").epoch(0))


@pytest.mark.parametrize("source", ["files", "webdataset"])
def test_no_more_is_decoded_than_a_window_and_a_border(train_samples, source):
    shape, policy = _shape(source=source), POLICIES["seed"]
    stream = _train(train_samples, policy="seed", source="files")._stream
    edges, smaller = train_samples.edges, 0
    for placed in place(stream.epoch(0), train_samples, shape, policy):
        start, end = np.split(placed.views["part"], 2, axis=1)
        window = placed.views["window"] + np.tile(start, 2)
        assert (start >= 0).all()
        assert (end <= edges[placed.rows]).all()
        assert (start <= np.maximum(window[:, :2], 0)).all()
        assert (end >= np.minimum(window[:, 2:], edges[placed.rows])).all()
        smaller += ((end - start).prod(axis=1) < edges[placed.rows].prod(axis=1)).sum()
    assert smaller > len(train_samples) / 2


def test_packed_pixels_and_files_validate_alike(val_samples):
    packed, files = (eval_loader(val_samples, shape=_shape(source=source)) for source in ("packed", "files"))
    for one, other in zip(packed.epoch(), files.epoch(), strict=True):
        assert torch.equal(one.rows, other.rows)
        assert np.abs(_pixels(one).astype(int) - _pixels(other)).max() <= 2


def test_labels_belong_to_their_images(train_samples):
    for batch in _train(train_samples).epoch(0):
        np.testing.assert_array_equal(batch.labels.numpy(), train_samples.labels[batch.rows.numpy()])


# Form


@pytest.mark.parametrize("source", ["packed", "files"])
def test_batches_are_bytes_in_channels_last_without_a_copy(train_samples, source):
    batch = next(iter(_train(train_samples, source=source).epoch(0)))
    assert batch.images.dtype == torch.uint8
    assert batch.labels.dtype == batch.rows.dtype == torch.int64
    assert batch.images.shape == (8, 3, EXACT, EXACT)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    # A view of the tensor that DALI filled, not a copy of it in another layout.
    assert batch.images._base is not None
    assert batch.images.data_ptr() == batch.images._base.data_ptr()


def test_batches_stay_as_they_are_while_later_ones_are_made(train_samples):
    loader = _train(train_samples)
    kept, copies = [], []
    for epoch in range(4):
        for batch in loader.epoch(epoch):
            kept.append(batch)
            copies.append((batch.images.clone(), batch.labels.clone(), batch.rows.clone()))
    del loader
    for batch, (images, labels, rows) in zip(kept, copies, strict=True):
        assert torch.equal(batch.images, images)
        assert torch.equal(batch.labels, labels)
        assert torch.equal(batch.rows, rows)


def test_a_batch_may_be_written_to_without_harm(train_samples):
    before = np.array(train_samples.packed)
    untouched = list(_train(train_samples).epoch(0))
    loader = _train(train_samples)
    for batch, expected in zip(loader.epoch(0), untouched, strict=True):
        assert torch.equal(batch.images, expected.images)
        batch.images.zero_()
        batch.labels.fill_(-1)
        batch.rows.fill_(-1)
    np.testing.assert_array_equal(train_samples.packed, before)
    assert _same(loader.epoch(1), _train(train_samples).epoch(1))


# Epochs


@pytest.mark.parametrize("batch_size", [3, 7, 8, 9, 23, 46, 47, 48, 64])
def test_every_image_comes_once_an_epoch(train_samples, batch_size):
    assert len(train_samples) == 47
    loader = _train(train_samples, batch_size=batch_size)
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        assert len(batches) == len(loader) == -(-47 // batch_size)
        assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(47))
        sizes = [len(batch.rows) for batch in batches]
        assert all(2 <= size <= batch_size for size in sizes)
        assert [len(batch.images) for batch in batches] == [len(batch.labels) for batch in batches] == sizes


@pytest.mark.parametrize("batch_size", [5, 11, 12, 64])
def test_validation_comes_in_shard_order_lone_tail_included(val_samples, batch_size):
    rows = [batch.rows for batch in eval_loader(val_samples, shape=_shape(batch_size=batch_size)).epoch()]
    assert torch.equal(torch.cat(rows), torch.arange(len(val_samples)))
    assert {len(part) for part in rows[:-1]} <= {batch_size}


def test_every_epoch_has_another_order_and_other_views(train_samples):
    loader = _train(train_samples)
    epochs = [list(loader.epoch(epoch)) for epoch in range(4)]
    orders = [tuple(torch.cat([batch.rows for batch in batches]).tolist()) for batches in epochs]
    assert len(set(orders)) == 4
    row = orders[0][0]
    views = {
        _pixels(batch)[batch.rows.tolist().index(row)].tobytes()
        for batches in epochs
        for batch in batches
        if row in batch.rows.tolist()
    }
    assert len(views) > 1


@pytest.mark.parametrize(
    ("source", "policy"), [*((("packed"), name) for name in POLICIES), ("files", "seed"), ("webdataset", "basic")]
)
def test_the_same_seed_gives_the_same_batches_for_any_number_of_threads(tarred_samples, source, policy):
    first = list(_train(tarred_samples, source=source, policy=policy, threads=1).epoch(0))
    for threads in (1, 2, 3):
        assert _same(first, _train(tarred_samples, source=source, policy=policy, threads=threads).epoch(0))


def test_another_seed_gives_other_batches(train_samples):
    assert not _same(_train(train_samples, seed=1).epoch(0), _train(train_samples, seed=2).epoch(0))


def test_any_epoch_can_be_the_first(train_samples):
    running = _train(train_samples)
    epochs = [list(running.epoch()) for _ in range(4)]
    for epoch, batches in enumerate(epochs):
        assert _same(_train(train_samples).epoch(epoch), batches)


def test_epochs_may_be_asked_for_in_any_order(train_samples):
    loader = _train(train_samples)
    expected = {epoch: list(_train(train_samples).epoch(epoch)) for epoch in range(3)}
    for epoch in (2, 0, 0, 1, 2):
        assert _same(loader.epoch(epoch), expected[epoch])


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_breaking_off_does_not_disturb_the_epochs_after(train_samples, taken):
    expected = [list(_train(train_samples).epoch(epoch)) for epoch in range(3)]
    loader = _train(train_samples)
    assert _same(islice(loader.epoch(0), taken), expected[0][:taken])
    assert _same(loader.epoch(1), expected[1])
    assert _same(loader.epoch(2), expected[2])


def test_the_next_epoch_after_one_broken_off_is_its_successor(train_samples):
    loader = _train(train_samples)
    list(loader.epoch(3))
    list(islice(loader.epoch(4), 2))
    assert _same(loader.epoch(), _train(train_samples).epoch(5))


def test_a_loader_knows_how_much_it_holds(train_samples):
    loader = _train(train_samples)
    assert loader.images == 47
    assert len(loader) == 6


# Validation has no randomness


def test_validation_is_the_same_on_every_pass(val_samples):
    loader = eval_loader(val_samples, shape=_shape())
    first = list(loader.epoch())
    assert _same(first, loader.epoch())
    assert _same(first, loader.epoch(7))
    assert _same(first, eval_loader(val_samples, shape=_shape(threads=2)).epoch())


def test_no_policy_and_no_seed_can_be_given_to_validation(val_samples):
    assert set(inspect.signature(eval_loader).parameters) == {"samples", "shape", "process"}
    for forbidden in ({"policy": "basic"}, {"seed": 1}, {"shuffle": True}):
        with pytest.raises(TypeError):
            eval_loader(val_samples, shape=_shape(), **forbidden)


def test_validation_uses_no_random_numbers(val_samples, monkeypatch):
    expected = list(eval_loader(val_samples, shape=_shape()).epoch())

    class Refusing:
        def __getattr__(self, name):
            raise AssertionError(f"{name} was drawn")

    monkeypatch.setattr(np.random, "default_rng", lambda *_: Refusing())
    before = torch.get_rng_state()
    assert _same(eval_loader(val_samples, shape=_shape()).epoch(), expected)
    assert torch.equal(torch.get_rng_state(), before)


# What is made once


@pytest.fixture
def built(monkeypatch):
    """The shapes of all pipelines that are built."""
    shapes, build = [], feed.build_graph

    def noting(images, views, shape, policy):
        shapes.append(shape)
        return build(images, views, shape, policy)

    monkeypatch.setattr(feed, "build_graph", noting)
    return shapes


def test_validation_keeps_its_pipeline(val_samples, built):
    loader = eval_loader(val_samples, shape=_shape())
    passes = [list(loader.epoch(epoch)) for epoch in (0, 0, 5, None, 0)]
    assert len(built) == 1
    assert all(_same(one, passes[0]) for one in passes[1:])
    assert loader.position == (1, 0)


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_validation_that_was_broken_off_begins_anew(val_samples, built, taken):
    loader = eval_loader(val_samples, shape=_shape(batch_size=3))
    first = list(loader.epoch(0))
    assert _same(islice(loader.epoch(0), taken), first[:taken])
    assert _same(loader.epoch(0), first)
    assert len(built) <= 2


def test_training_keeps_its_pipeline_from_epoch_to_epoch_and_never_for_the_same_one_again(train_samples, built):
    loader = _train(train_samples)
    epochs = [list(loader.epoch()) for _ in range(3)]
    assert len(built) == 1
    assert _same(loader.epoch(0), epochs[0])
    assert len(built) == 2


@pytest.mark.parametrize("of", ["train", "val"])
def test_a_loader_of_another_size_shares_what_is_open(train_samples, val_samples, monkeypatch, of):
    """On a GPU, each copy of all squares would take its memory anew."""
    copied, copy = [], source_module.copy_squares
    monkeypatch.setattr(source_module, "copy_squares", lambda *given: copied.append(given) or copy(*given))
    if of == "train":
        loader = _train(train_samples, source="resident", image_size=32)
    else:
        loader = eval_loader(val_samples, shape=_shape(source="resident", image_size=32))
    squares = loader._source.squares.data_ptr()
    for size in (32, 48, 56):
        loader = loader.resized(size)
        assert next(loader.epoch()).images.shape[-1] == size
        assert loader._source.squares.data_ptr() == squares
    assert len(copied) == 1


# Processes and samplers


@pytest.mark.parametrize("batch_size", [4, 7])
@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_together_see_every_image_once(train_samples, val_samples, world_size, batch_size):
    for samples, make in ((train_samples, _train), (val_samples, None)):
        loaders = [
            _train(samples, batch_size=batch_size, process=Process(rank, world_size))
            if make
            else eval_loader(samples, shape=_shape(batch_size=batch_size), process=Process(rank, world_size))
            for rank in range(world_size)
        ]
        batches = [list(loader.epoch(0)) for loader in loaders]
        rows = [row for part in batches for batch in part for row in batch.rows.tolist()]
        assert sorted(rows) == list(range(len(samples)))
        assert [len(part) for part in batches] == [len(loader) for loader in loaders]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 8), (1, 46), (2, 7), (3, 4)])
def test_sizes_are_those_of_the_batches_before_any_is_made(train_samples, val_samples, world_size, batch_size):
    """The weight of a batch in its update is reckoned from them."""
    processes = [Process(rank, world_size) for rank in range(world_size)]
    training = [_train(train_samples, batch_size=batch_size, process=process) for process in processes]
    validation = [eval_loader(val_samples, shape=_shape(batch_size=batch_size), process=one) for one in processes]
    for loaders in (training, validation):
        told = [loader.sizes for loader in loaders]
        made = [[len(batch.rows) for batch in loader.epoch(0)] for loader in loaders]
        assert [[mine for mine, _ in sizes] for sizes in told] == made
        assert [len(sizes) for sizes in told] == [len(loader) for loader in loaders]
    together = [sum(parts) for parts in zip(*([mine for mine, _ in one.sizes] for one in training), strict=True)]
    assert all([whole for _, whole in loader.sizes] == together for loader in training)


def test_balanced_sampling_shows_every_class_as_often(train_samples):
    loader = _train(train_samples, sampler="balanced")
    labels = torch.cat([batch.labels for epoch in range(5) for batch in loader.epoch(epoch)])
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    assert len(counts) == 5
    assert counts.max() - counts.min() <= 1
    assert counts.sum() == 5 * 47


# Position


def _from(loader, state):
    """The rest of the epoch that `state` stands in and the one after it, from a loader that loads it."""
    loader.load_state_dict(json.loads(json.dumps(state)))
    return [*loader.epoch(), *loader.epoch()]


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "mixed:0.66", "policy": "strong"}, {"source": "files", "policy": "robust"}]
)
def test_resumed_from_every_position_the_stream_is_the_same(train_samples, options):
    running = _train(train_samples, **options)
    states, batches = [running.state_dict()], []
    for _ in range(4):
        for batch in running.epoch():
            batches.append(batch)
            states.append(running.state_dict())
    length = len(running)
    assert [(state["epoch"], state["batch"]) for state in states] == [divmod(n, length) for n in range(4 * length + 1)]
    for position in range(2 * length + 1):
        end = (position // length + 2) * length
        assert _same(_from(_train(train_samples, **options), states[position]), batches[position:end])


def test_a_loader_that_has_run_can_be_set_to_any_position(train_samples):
    loader = _train(train_samples)
    list(loader.epoch())
    begun = loader.epoch()
    next(begun), next(begun)
    state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (1, 2)
    rest = list(begun)
    for _ in range(2):
        loader.load_state_dict(state)
        assert loader.state_dict() == state
        assert _same(loader.epoch(), rest)
    assert _same(loader.epoch(), _train(train_samples).epoch(2))


def test_the_position_is_behind_what_was_delivered(train_samples):
    loader = _train(train_samples)
    assert loader.position == (0, 0)
    begun = loader.epoch(2)
    assert loader.position == (0, 0)  # nothing delivered yet
    next(begun)
    assert loader.position == (2, 1)
    assert len(list(begun)) == len(loader) - 1
    assert loader.position == (3, 0)
    loader.load_state_dict({**loader.state_dict(), "epoch": 5, "batch": 4})
    assert loader.position == (5, 4)


@pytest.mark.parametrize("options", [{}, {"policy": "strong", "sampler": "balanced", "source": "files"}])
def test_any_batch_can_be_had_again_without_disturbing_the_epoch_under_way(train_samples, options):
    expected = [list(_train(train_samples, **options).epoch(epoch)) for epoch in range(2)]
    loader = _train(train_samples, **options)
    running = loader.epoch()
    delivered = [next(running), next(running)]
    before = loader.state_dict()
    for epoch, batch in ((0, 1), (1, 3), (0, len(loader) - 1), (0, 0)):
        assert _same([loader.again(epoch, batch)], [expected[epoch][batch]])
    assert loader.state_dict() == before
    assert _same([*delivered, *running], expected[0])
    assert _same(loader.epoch(), expected[1])


def test_a_position_is_the_same_for_every_process_and_wherever_squares_lie(train_samples):
    states = []
    for rank, source in ((0, "packed"), (1, "resident")):
        loader = _train(train_samples, batch_size=4, source=source, process=Process(rank, 2))
        next(loader.epoch())
        states.append(loader.state_dict())
    assert states[0] == states[1]


OTHERS = {
    "batch_size": lambda samples: _train(samples, batch_size=9),
    "world_size": lambda samples: _train(samples, process=Process(0, 2)),
    "policy": lambda samples: _train(samples, policy="lineage"),
    "sampler": lambda samples: _train(samples, sampler="balanced"),
    "pixels": lambda samples: _train(samples, source="files"),
    "images": lambda samples: _train(samples.select(np.arange(47)[::-1])),
    "seed": lambda samples: _train(samples, seed=2),
    "image_size": lambda samples: _train(samples, image_size=40),
    "split": lambda samples: _train(replace(samples, split="fold0-train")),
    "data_fingerprint": lambda samples: _train(replace(samples, fingerprint="0" * 64)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_position_among_other_batches_is_refused_by_name(train_samples, name):
    state = OTHERS[name](train_samples).state_dict()
    loader = _train(train_samples)
    list(loader.epoch())
    before = loader.state_dict()
    with pytest.raises(HemafastError, match=name):
        loader.load_state_dict(state)
    assert loader.state_dict() == before


def test_an_epoch_that_goes_on_after_another_position_was_loaded_does_not_count(train_samples):
    loader = _train(train_samples)
    old = loader.epoch()
    next(old)
    state = loader.state_dict()
    next(old)
    loader.load_state_dict(state)
    next(old)
    assert loader.state_dict() == state
    assert _same(loader.epoch(), list(_train(train_samples).epoch(0))[1:])


def test_a_graph_for_other_squares_is_refused(train_samples):
    shape = GraphShape("cpu", "packed", 256, 224, 8, 1)
    with pytest.raises(HemafastError, match="256 px"):
        train_loader(train_samples, policy=POLICIES["basic"], seed=0, shape=shape)


def test_a_position_of_validation_is_no_position_of_training(train_samples, val_samples):
    with pytest.raises(HemafastError, match="split"):
        _train(train_samples).load_state_dict(eval_loader(val_samples, shape=_shape()).state_dict())


@pytest.mark.parametrize(
    "change", [{"epoch": -1}, {"batch": 6}, {"batch": -1}, {"epoch": "1"}, {"batch": None}, {"batch": 1.5}]
)
def test_a_position_that_cannot_be_is_refused(train_samples, change):
    loader = _train(train_samples)
    with pytest.raises(HemafastError, match="position"):
        loader.load_state_dict({**loader.state_dict(), **change})


def test_a_position_that_lacks_something_is_refused(train_samples):
    loader = _train(train_samples)
    for name in loader.state_dict().keys() - {"batches", "views"}:  # what an earlier version did not save
        state = loader.state_dict()
        del state[name]
        with pytest.raises(HemafastError):
            loader.load_state_dict(state)


def test_a_position_of_version_0_1_0_resumes_where_its_batches_were_the_same(train_samples):
    """It did not save their number, and gave a lone last image a batch of its own."""
    for batch_size, refused in ((2, True), (3, False), (8, False)):  # of 47 images
        loader = _train(train_samples, batch_size=batch_size)
        expected = list(loader.epoch(0))[1:]
        state = {**loader.state_dict(), "epoch": 0, "batch": 1}
        del state["batches"]
        if refused:
            with pytest.raises(HemafastError, match="batches = 24, but this loader has 23"):
                loader.load_state_dict(state)
        else:
            loader.load_state_dict(state)
            assert _same(loader.epoch(), expected)


def test_a_position_from_before_a_policy_had_all_its_fields_resumes_unless_it_uses_them(train_samples):
    loader = _train(train_samples)
    expected = list(loader.epoch(0))[1:]
    for policy, refused in (("basic", False), ("robust", True)):
        loader = _train(train_samples, policy=policy)
        state = {**loader.state_dict(), "epoch": 0, "batch": 1}
        for name in ("background", "density", "contrast", "brightness", "blur"):
            del state["policy"][name]
        if refused:
            with pytest.raises(HemafastError, match="policy"):
                loader.load_state_dict(state)
        else:
            loader.load_state_dict(state)
            assert _same(loader.epoch(), expected)


# The public contract


@pytest.fixture(scope="module")
def public(dataset):
    """`public(split="train", **options)`: a loader as `hf.open_dataset(...).loader` makes it."""

    def make(split="train", **options):
        return dataset.loader(split, **{"batch_size": 8, "size": EXACT, "threads": 1, "process": Process(), **options})

    return make


def _alike(first, second) -> bool:
    """Whether two lists of (images, labels) are bit for bit the same."""
    first, second = list(first), list(second)
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_iterating_gives_images_and_labels_and_is_one_epoch(public, dataset, split):
    loader, samples = public(split), dataset.samples(split)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(samples) // 8)
    for images, labels in batches:
        assert images.dtype == torch.uint8
        assert images.shape == (len(labels), 3, EXACT, EXACT)
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    assert sorted(torch.cat([labels for _, labels in batches]).tolist()) == sorted(samples.labels.tolist())
    assert _alike(loader, batches) == (split == "val")  # the next epoch of training is another one


@pytest.mark.parametrize("options", [{}, {"policy": "strong", "sampler": "balanced"}, {"source": "files"}])
def test_iterating_resumes_from_every_position_of_an_epoch(public, options):
    running = public(**options)
    states, batches = [running.state_dict()], []
    for batch in running:
        batches.append(batch)
        states.append(running.state_dict())
    following = list(running)
    for position, state in enumerate(states):
        loader = public(**options)
        loader.load_state_dict(json.loads(json.dumps(state)))
        if position < len(loader):  # the state after the last batch is the start of the next epoch
            assert _alike(loader, batches[position:])
        assert _alike(loader, following)


def test_set_epoch_jumps_and_keeps_the_rest_of_a_restored_epoch(public):
    running = public()
    epochs = [list(running) for _ in range(4)]
    loader = public()
    for epoch in (3, 1, 1, 0):
        loader.set_epoch(epoch)
        assert _alike(loader, epochs[epoch])
    assert _alike(loader, epochs[1])  # the next one follows by itself
    begun = iter(loader)
    next(begun), next(begun)
    state = loader.state_dict()
    for epoch, expected in ((2, epochs[2][2:]), (3, epochs[3])):
        restored = public()
        restored.load_state_dict(state)
        restored.set_epoch(epoch)
        assert _alike(restored, expected)


@pytest.mark.parametrize("split", ["train", "val"])
def test_two_processes_iterate_over_every_image_once(public, dataset, split):
    """Under the policy `none` an image is the centre of its square, whichever process has it."""
    seen = [
        (image.tobytes(), label)
        for rank in range(2)
        for images, labels in public(split, policy="none", process=Process(rank, 2))
        for image, label in zip(images.permute(0, 2, 3, 1).numpy(), labels.tolist(), strict=True)
    ]
    samples = dataset.samples(split)
    squares = np.asarray(samples.packed)[:, 4:60, 4:60]
    assert sorted(seen) == sorted(
        (square.tobytes(), label) for square, label in zip(squares, samples.labels.tolist(), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"split": "val", "policy": "basic"}, "policy = 'basic'"),
        ({"split": "test"}, "no split 'test'"),
        ({"device": "tpu"}, "device = 'tpu'"),
        ({"source": "disk"}, "source = 'disk'"),
        ({"policy": "wild"}, "no policy 'wild'"),
        ({"sampler": "rare"}, "no sampler 'rare'"),
    ],
)
def test_an_argument_that_makes_no_sense_is_refused_by_name_and_value(public, options, named):
    with pytest.raises(HemafastError, match=named):
        public(**options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_missing_is_refused(public):
    with pytest.raises(HemafastError, match="no CUDA device"):
        public(device="cuda")
    assert next(iter(public(device="auto")))[0].device.type == "cpu"
