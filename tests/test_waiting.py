"""Threads that wait for others keep their core only briefly, unless the user wants something else."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hemafast
from hemafast.waiting import SPINS, set_by_user, spin_as_usual, spin_briefly, waiting_told

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
def test_what_the_user_has_set_stays(given, count, told):
    environment = dict(given)
    spin_briefly(environment)
    assert environment.get("GOMP_SPINCOUNT") == count
    assert waiting_told(environment)[0] == told


def test_what_hemafast_sets_is_not_what_the_user_has_set():
    environment: dict[str, str] = {}
    spin_briefly(environment)
    assert not set_by_user(environment)
    assert set_by_user({"GOMP_SPINCOUNT": "7"})
    assert set_by_user({"OMP_WAIT_POLICY": "PASSIVE"})


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
