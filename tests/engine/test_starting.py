"""The seconds of the start, by part."""

import gc
import time

import pytest

from hemafast.collector import resting
from hemafast.engine.starting import Starting


def test_parts_add_up_to_the_whole(monkeypatch):
    now = iter([3.0, 3.5, 4.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    starting = Starting(1.0)
    for part in ("imports", "network", "imports", "first step"):
        starting.done(part)
    assert starting.told() == "imports 2.5, network 0.5, first step 2.0"
    assert starting.seconds == 5.0


def test_the_garbage_collector_rests_until_the_start_is_over():
    assert gc.isenabled()
    with Starting(0.0) as starting:
        assert not gc.isenabled()
        starting.close()
        assert gc.isenabled()
        gc.disable()
    assert not gc.isenabled()  # what is closed changes nothing
    gc.enable()


def test_a_start_that_fails_ends_the_rest():
    with pytest.raises(ValueError, match="no data"), Starting(0.0):
        raise ValueError("no data")
    assert gc.isenabled()


def test_a_collector_that_is_off_stays_off():
    gc.disable()
    try:
        with resting():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
