"""The benchmark beside busy neighbours: what is fair, and who is compared with whom."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "benchmarks"))

import busy  # a script beside the package, not part of it

MACHINE = {"cores": "2", "processor": "a processor", "torch": "2.0"}


def test_a_fair_share_is_that_of_as_many_threads_as_cores(monkeypatch):
    monkeypatch.setattr(busy, "CORES", 2)
    assert [busy.fair(one) for one in busy.SITUATIONS] == pytest.approx([1, 2 / 3, 1 / 2, 2 / 5, 3 / 4])


def test_a_round_is_compared_with_its_own_quiet_rate(monkeypatch):
    monkeypatch.setattr(busy, "CORES", 2)
    rates = {busy.AS_IT_IS: {"0 neighbours": [100.0, 50.0], "2 neighbours": [40.0, 20.0]}}
    found = busy.judged(rates)[busy.AS_IT_IS]["2 neighbours"]
    assert (found["share"]["min"], found["share"]["max"]) == pytest.approx((0.8, 0.8))
    result = {"machine": MACHINE, "rounds": 2, "seconds": 5.0, "no_quota": "read-only", "settings": busy.judged(rates)}
    text = busy.tables({"busy": result})["busy"]
    assert "| waiting threads | 0 neighbours | 2 neighbours |" in text
    assert "No quota was measured: read-only." in text


def test_neighbours_are_busy_and_end_with_the_block():
    before = set(children())  # of other tests
    with busy.neighbours(1):
        (child,) = set(children()) - before
        time.sleep(0.3)
    assert child not in children()


def children() -> list[int]:
    """Process ids of the children of this process."""
    told = subprocess.run(
        ["ps", "--ppid", str(os.getpid()), "-o", "pid=,comm="], check=True, capture_output=True, text=True
    )
    return [int(line.split()[0]) for line in told.stdout.splitlines() if "ps" not in line.split()[1:]]
