"""Runs that end on time."""

import time

import pytest

from hemafast.config import seconds_of
from hemafast.engine import duration, hooks
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import read_rows
from hemafast.engine.step import TrainStep
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.run_folder import BEST, LAST


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    """Time for a report is not planned."""
    monkeypatch.setattr(duration, "_REPORT", 0.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second an update, and stands still otherwise."""
    now = [1000.0]
    step = TrainStep.__call__

    def ticking(self, *arguments, **named):
        now[0] += 1.0
        return step(self, *arguments, **named)

    monkeypatch.setattr(TrainStep, "__call__", ticking)
    monkeypatch.setattr(hooks.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(hooks.Clock, "_ending", lambda self, validation: 2.0)
    return now


def updates(folder):
    return load_last(folder / LAST)["progress"]["steps_done"]


def test_as_many_updates_are_made_as_fit(settings, clock):
    folder = train(settings(time_budget=14.0, batch_size=10, epochs=1))
    assert updates(folder) == 12  # two epochs of five, and two updates of the third
    assert len(read_rows(folder)) == 6
    _, card = load_best(folder / BEST)
    assert card.epoch in (1, 2, 3)


def test_schedule_and_sizes_are_laid_over_the_time(settings, clock, monkeypatch):
    seen, step = [], TrainStep.__call__

    def noting(self, batch, lr, *arguments, **named):
        seen.append((batch.images.shape[-1], lr))
        return step(self, batch, lr, *arguments, **named)

    monkeypatch.setattr(TrainStep, "__call__", noting)
    asked = {"schedule": "onecycle", "lr": 1e-2, "image_size": 64, "growing_from": (32,)}
    train(settings(time_budget=12.0, batch_size=10, **asked))
    sides, rates = zip(*seen, strict=True)
    assert sides == (32,) * 5 + (64,) * 5
    assert max(rates) == pytest.approx(1e-2, rel=0.1)
    assert rates.index(max(rates)) == 3
    assert rates[-1] < 1e-3


def test_a_budget_shorter_than_an_epoch_says_what_fits_and_leaves_a_model(settings, clock, caplog):
    folder = train(settings(time_budget=4.0, batch_size=10))
    assert updates(folder) == 2
    assert load_best(folder / BEST)[1].epoch == 1
    (said,) = [one.getMessage() for one in caplog.records if "time budget" in one.getMessage()]
    assert said.startswith("the time budget of 4 s fits about 4")  # 20 of 47 images
    assert "a whole epoch with validation and report takes about 7 s" in said
    metrics = evaluate_run(folder)
    assert metrics["training"]["images"] == 20
    assert (
        "The time budget ended training within its first epoch: it saw 20 of 47 training images" in metrics["warnings"]
    )


def test_what_fits_is_said_once_the_pace_is_known_and_not_of_a_budget_that_is_long_enough(settings, clock, caplog):
    train(settings(time_budget=6.5, batch_size=10))
    assert len([one for one in caplog.records if "time budget" in one.getMessage()]) == 1
    caplog.clear()
    train(settings(time_budget=14.0, batch_size=10))
    assert "time budget" not in caplog.text


def test_a_budget_that_is_over_before_the_first_update_is_refused_and_nothing_is_written(settings, clock):
    config = settings(time_budget=4.0, batch_size=10)
    with pytest.raises(HemafastError, match="4 s was over before the first update: the start took 60 s") as caught:
        train(config, began=clock[0] - 60)
    assert "--time-budget, such as 240s" in caught.value.remedy
    assert not list(config.output.glob("*"))


def test_a_slow_first_update_does_not_make_the_validation_look_long(settings, clock, monkeypatch):
    original = TrainStep.__call__

    def compiling(self, *arguments, step, **named):
        clock[0] += 199.0 if step == 0 else 0.0
        return original(self, *arguments, step=step, **named)

    monkeypatch.setattr(TrainStep, "__call__", compiling)
    monkeypatch.setattr(hooks.Clock, "_ending", lambda self, validation: validation)
    folder = train(settings(time_budget=204.0, batch_size=10))
    assert updates(folder) == 5
    assert len(read_rows(folder)) == 2  # one epoch, not ended before its time


def test_a_stopped_run_goes_on_with_the_time_that_is_left(settings, clock, signal_at):
    config = settings(time_budget=12.0, batch_size=10)
    with signal_at(4), pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    clock[0] += 3600  # nobody was training
    resume(folder)
    assert updates(folder) == 10


def test_a_finished_run_is_left_alone_and_a_longer_budget_extends_it(settings, clock):
    folder = train(settings(time_budget=8.0, batch_size=10))
    before = (folder / LAST).read_bytes()
    resume(folder)
    assert (folder / LAST).read_bytes() == before
    resume(folder, {"time_budget": 12.0})
    assert updates(folder) == 10


def test_a_run_stopped_in_its_last_validation_validates_when_it_goes_on(settings, clock, monkeypatch):
    config = settings(time_budget=7.0, batch_size=10)
    monkeypatch.setattr(hooks.Stops, "in_validation", lambda self: self._stop(2))
    with pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    assert not (folder / BEST).exists()
    monkeypatch.undo()
    resume(folder)
    assert (folder / BEST).is_file()


def test_the_log_does_not_promise_a_number_of_epochs(settings, clock):
    folder = train(settings(time_budget=8.0, batch_size=10))
    assert "epoch 1: train loss" in (folder / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("seconds", [6.0, 9.0])
def test_a_real_clock_is_kept(settings, seconds):
    began = time.monotonic()
    folder = train(settings(time_budget=seconds, batch_size=10, epochs=1), began=began)
    assert updates(folder) > 5
    assert 0.85 * seconds < time.monotonic() - began < seconds + 1.0


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("10m", 600), ("1h30m", 5400), ("2H", 7200), ("0.5m", 30)]
)
def test_lengths_of_time_as_people_write_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "ten", "10x", "m", "1m1h", "-5m", "1.2.3s", "nan"])
def test_what_is_no_length_of_time_is_refused(text):
    with pytest.raises(HemafastError, match="90s, 10m or 1h30m"):
        seconds_of(text)
