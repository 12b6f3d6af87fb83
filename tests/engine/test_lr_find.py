"""The learning rate range test."""

import csv

import numpy as np
import pytest
from recorder import Recorder

from hemafast.engine.lr_find import RateCurve, find_rate, write_curve
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS


def bowl(steps: int = 100) -> RateCurve:
    """A loss that is flat, falls around a rate of 1e-3, is lowest at 1e-2, and rises again."""
    rates = np.geomspace(1e-6, 1, steps)
    return RateCurve(rates, 2 - 1 / (1 + (1e-3 / rates) ** 2) + np.maximum(np.log10(rates / 1e-2), 0) ** 2)


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss():
    curve = bowl()
    lowest = curve.rates[curve.smoothed.argmin()]
    assert curve.suggestion == pytest.approx(lowest / 10)
    assert 3e-3 < lowest < 0.1  # smoothing lags by some steps


def test_the_steepest_fall_lies_before_the_lowest_loss():
    curve = bowl()
    assert 3e-4 < curve.steepest < 1e-2
    assert curve.steepest < curve.rates[curve.smoothed.argmin()]


def test_smoothing_is_free_of_its_beginning():
    flat = RateCurve(np.geomspace(1e-6, 1, 20), np.full(20, 3.0))
    assert flat.smoothed == pytest.approx(np.full(20, 3.0))


def test_rates_rise_by_a_constant_factor_over_real_batches(settings):
    told = Recorder()
    curve = find_rate(settings(), first=1e-6, last=1e-2, steps=12, progress=told)
    assert curve.rates[0] == pytest.approx(1e-6)
    assert np.diff(np.log(curve.rates)) == pytest.approx(np.full(len(curve.rates) - 1, np.log(1e4) / 11))
    assert np.isfinite(curve.losses).all()
    (stage,) = told.stages
    assert (stage.total, stage.done[-1], stage.unit) == (12, len(curve.losses), "steps")


def test_it_ends_where_the_loss_breaks_out(settings):
    curve = find_rate(settings(), first=1e-4, last=1e6, steps=60)
    assert len(curve.rates) < 60


def test_it_says_what_it_starts_from_and_that_a_preset_is_thawed(settings, monkeypatch, caplog):
    monkeypatch.setitem(PRESETS, "fast", lambda: {"freeze_stages": 2})
    caplog.set_level("INFO", "hemafast")
    find_rate(settings(preset="fast", freeze_stages=2), last=1e-3, steps=10)
    assert "started from random weights" in caplog.text
    assert "all layers are trained" in caplog.text


def test_it_is_the_same_twice(settings):
    first, second = (find_rate(settings(), steps=10, last=1e-3) for _ in range(2))
    assert first.losses.tolist() == second.losses.tolist()


@pytest.mark.parametrize("range_", [{"first": 0.0}, {"first": 1.0, "last": 1.0}, {"steps": 3}])
def test_a_range_that_is_none_is_refused(settings, range_):
    with pytest.raises(HemafastError, match="range"):
        find_rate(settings(), **range_)


def test_picture_and_figures_are_written(tmp_path):
    picture = write_curve(bowl(), tmp_path / "found")
    assert picture.stat().st_size > 5_000
    with (tmp_path / "found" / "lr_find.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 100
    assert float(rows[-1]["lr"]) == 1.0
