"""Images that are small at first."""

import numpy as np
import pytest

from hemafast.data import source
from hemafast.engine import task
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import read_rows
from hemafast.engine.step import EvalStep, TrainStep
from hemafast.engine.trainer import train
from hemafast.errors import HemafastError
from hemafast.run_folder import BEST, LAST

UPDATES = 5  # an epoch: 47 images in batches of 10


@pytest.fixture
def sizes(monkeypatch):
    """Sides of the images of every training and every evaluation step, in turn."""
    seen = {"train": [], "val": []}
    for kind, phase in ((TrainStep, "train"), (EvalStep, "val")):
        monkeypatch.setattr(kind, "__call__", _noting(kind.__call__, seen[phase]))
    return seen


def _noting(step, seen):
    def noted(self, batch, *arguments, **named):
        seen.append(batch.images.shape[-1])
        return step(self, batch, *arguments, **named)

    return noted


def test_images_grow_in_equal_shares_and_validation_with_them(settings, sizes):
    train(settings(epochs=3, batch_size=10, image_size=64, growing_from=(32, 48)))
    assert sizes["train"] == [32] * UPDATES + [48] * UPDATES + [64] * UPDATES
    assert np.diff(sizes["val"]).min() >= 0
    assert set(sizes["val"]) == {32, 48, 64}


def test_squares_on_the_device_are_copied_once_however_often_images_grow(settings, sizes, monkeypatch):
    copied, copy = [], source.copy_squares
    monkeypatch.setattr(source, "copy_squares", lambda samples, device: copied.append(samples) or copy(samples, device))
    train(settings(epochs=1, batch_size=10, input="resident", image_size=64, growing_from=(32, 48)))
    assert set(sizes["train"]) == {32, 48, 64}
    assert [samples.split for samples in copied] == ["train", "val"]


def test_images_grow_within_an_epoch_behind_a_whole_update(settings, sizes):
    train(settings(epochs=1, batch_size=10, accumulate=2, image_size=64, growing_from=(32,)))
    assert sizes["train"] == [32] * 4 + [
        64
    ]  # three updates, of 2, 2 and 1 batches; the second begins in the first half
    assert set(sizes["val"]) == {64}


def test_an_epoch_in_which_images_grow_has_every_image_once(settings, monkeypatch):
    rows, step = [], TrainStep.__call__

    def noted(self, batch, *arguments, **named):
        rows.append(batch.rows.numpy().copy())
        return step(self, batch, *arguments, **named)

    monkeypatch.setattr(TrainStep, "__call__", noted)
    train(settings(epochs=1, batch_size=10, image_size=64, growing_from=(32, 48)))
    assert sorted(np.concatenate(rows)) == list(range(47))


def test_the_model_knows_the_size_of_its_best_epoch(settings, monkeypatch):
    monkeypatch.setattr(task, "macro_f1", lambda _: 0.5)  # so that the first epoch stays the best one
    folder = train(settings(epochs=2, batch_size=10, image_size=64, growing_from=(32,)))
    _, card = load_best(folder / BEST)
    assert (card.epoch, card.image_size) == (1, 32)


def test_a_run_that_grows_is_evaluated_at_the_size_of_its_best_epoch(settings, monkeypatch, sizes):
    from hemafast.evaluate.evaluate import evaluate_run

    monkeypatch.setattr(task, "macro_f1", lambda _: 0.5)
    folder = train(settings(epochs=2, batch_size=10, image_size=64, growing_from=(32,)))
    sizes["val"].clear()
    metrics = evaluate_run(folder)
    assert set(sizes["val"]) == {32}
    assert metrics["model"]["image_size"] == 32
    assert [row["phase"] for row in read_rows(folder)] == ["train", "val"] * 2


def test_the_checkpoint_says_how_large_the_images_were(settings):
    folder = train(settings(epochs=2, batch_size=10, image_size=64, growing_from=(32,)))
    assert load_last(folder / LAST)["loader"]["image_size"] == 64


@pytest.mark.parametrize("sides", [(64,), (80,), (48, 32), (32, 32)])
def test_sides_that_do_not_rise_are_refused(settings, sides):
    with pytest.raises(HemafastError, match="does not rise to image_size = 64"):
        settings(image_size=64, growing_from=sides)
