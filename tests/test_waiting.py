"""Threads that wait for others keep their core only briefly, unless the user wants something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hemafast
from hemafast.waiting import SPINS, SPINS_BESIDE_OTHERS, cores_are_short, spin_as_usual, spin_briefly, waiting_told

WAITS = """
import os, sys, time
from hemafast.waiting import spin_briefly
if sys.argv[1:]:
    spin_briefly(os.environ)
import torch
torch.set_num_threads(2)
numbers = torch.ones(1 << 20)
began = None
for _ in range(60):
    numbers.add_(1)
    began = began or time.process_time()
    time.sleep(0.02)
print(time.process_time() - began)
"""


@pytest.mark.parametrize(
    ("given", "count", "told"),
    [
        ({}, str(SPINS), f"sleep after {SPINS} spins"),
        ({"GOMP_SPINCOUNT": "7"}, "7", "sleep after 7 spins"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None, "active"),
    ],
)
def test_what_the_user_has_set_stays(given, count, told, monkeypatch):
    monkeypatch.setattr("hemafast.waiting.cores_are_short", lambda: False)
    environment = dict(given)
    spin_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == count
    assert waiting_told(environment)[0] == told


def test_beside_busy_programs_threads_sleep_sooner(monkeypatch):
    monkeypatch.setattr("hemafast.waiting.cores_are_short", lambda: True)
    environment: dict[str, str] = {}
    spin_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": str(SPINS_BESIDE_OTHERS)}
    spin_as_usual(environment)
    assert not environment


@pytest.mark.parametrize(
    ("running", "cores", "usable", "short"),
    [
        ("1/180", 2, 2, False),  # this program alone
        ("2/180", 2, 2, True),
        ("9/180", 64, 8, False),  # others have 56 cores of their own
        ("60/900", 64, 8, True),
        ("3/180", 2, 1, True),
        ("many", 2, 2, False),
    ],
)
def test_cores_are_short_if_others_run_on_those_that_are_used(tmp_path, monkeypatch, running, cores, usable, short):
    load = tmp_path / "loadavg"
    load.write_text(f"0.00 0.00 0.00 {running} 4711\n")
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(usable)))
    assert cores_are_short(load) is short


def test_where_the_system_does_not_tell_nothing_is_short(tmp_path):
    assert not cores_are_short(tmp_path / "loadavg")


def test_a_peer_waits_as_usual_and_as_its_user_wants():
    environment: dict[str, str] = {}
    spin_briefly(environment)
    spin_as_usual(environment)
    assert not environment
    environment["GOMP_SPINCOUNT"] = "7"
    spin_as_usual(environment)
    assert environment == {"GOMP_SPINCOUNT": "7"}


def test_without_a_setting_the_runtime_has_its_own():
    assert "GOMP_SPINCOUNT" in waiting_told({})[1]


def seconds_of_waiting(*arguments: str) -> float:
    """CPU seconds of a process whose second thread waits most of the time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "OMP"))}
    environment["PYTHONPATH"] = str(Path(hemafast.__file__).parent.parent)
    command = [sys.executable, "-c", WAITS, *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a second thread needs a core to wait on")
def test_the_openmp_of_torch_obeys():
    assert seconds_of_waiting("briefly") < 0.7 * seconds_of_waiting()
