"""Hostile input is taken or refused in words by all that reads users' files; the search sees whatever else happens."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import hemafast

ROOT = Path(hemafast.__file__).resolve().parent.parent
PLANTED = """
import json, os, signal, sys, time
from hypothesis import strategies as st
from fuzz import search
from fuzz.targets import Target
from hemafast.errors import HemafastError

search.PATIENCE, search.BATCH = 1, 20

def refuse(data):
    raise HemafastError("It is bad.", "Make it good.")

def give_up(data):
    try:
        bytearray(4 * 2**30)
    except MemoryError as error:
        raise HemafastError("It is bad.", "Make it good.") from error

def fail(data):
    if len(data) > 1:
        raise ValueError(data)

readers = {
    "takes": bytes,
    "refuses": refuse,
    "fails": fail,
    "dies": lambda data: os.kill(os.getpid(), signal.SIGSEGV) if data[:1] > b"a" else None,
    "takes all memory": lambda data: bytearray(4 * 2**30) and None,
    "gives up": give_up,
    "ends": lambda data: sys.exit(3),
    "sleeps": lambda data: time.sleep(9) if data == b"" else None,
}
found = {
    name: search.search(name, lambda room, read=read: Target(st.binary(max_size=8), read), 30, 1)
    for name, read in readers.items()
}
print(json.dumps(search.summary(found)))
"""


def _run(*arguments):
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_the_search_sees_errors_crashes_and_readers_that_take_too_much(tmp_path):
    done = _run("-c", PLANTED)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    faults = {(one["target"], one["fault"].partition(":")[0], one["bytes"]) for one in found["failures"]}
    assert {fault[:2] for fault in faults} == {
        ("fails", "ValueError outside"),
        ("dies", "process ended by SIGSEGV"),
        ("takes all memory", "MemoryError outside"),
        ("gives up", "refused for want of memory, outside"),
        ("ends", "SystemExit outside"),
        ("sleeps", "TimeoutError outside"),
    }
    assert ("fails", "ValueError outside", 2) in faults, "the shortest input is kept"
    assert found["targets"]["refuses"]["refused"] == found["targets"]["refuses"]["inputs"] == 30
    assert found["targets"]["takes"]["refused"] == 0


def test_hostile_input_is_taken_or_refused(tmp_path):
    done = _run(str(ROOT / "tools" / "run_fuzz.py"), "--inputs", "200", "--keep", str(tmp_path))
    found = json.loads(done.stdout)
    assert found["failures"] == []
    assert done.returncode == 0
    assert found["inputs"] >= 200
    assert all(one["refused"] for one in found["targets"].values())


def test_atheris_is_named_where_it_is_not_installed_and_searches_where_it_is():
    done = _run(str(ROOT / "tools" / "run_fuzz.py"), "--inputs", "60", "--engine", "atheris", "--only", "tables")
    if importlib.util.find_spec("atheris") is None:
        assert "pip install atheris" in done.stderr
        return
    found = json.loads(done.stdout)
    assert (done.returncode, found["inputs"], found["failures"]) == (0, 60, [])
    assert 0 < found["targets"]["tables"]["refused"] < 60


def test_inputs_that_failed_once_are_read_first():
    sys.path.insert(0, str(ROOT / "tools"))
    from fuzz.search import CORPUS
    from fuzz.targets import TARGETS

    folders = {folder.name for folder in CORPUS.iterdir()}
    assert folders
    assert folders <= TARGETS.keys()
