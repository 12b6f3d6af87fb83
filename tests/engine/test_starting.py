"""The seconds of the start, by part."""

import time

from hemafast.engine.starting import Starting


def test_parts_add_up_to_the_whole(monkeypatch):
    now = iter([3.0, 3.5, 4.0, 6.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    starting = Starting(1.0)
    for part in ("imports", "network", "imports", "first step"):
        starting.done(part)
    assert starting.told() == "imports 2.5, network 0.5, first step 2.0"
    assert starting.seconds == 5.0
