"""Runs in processes of their own: several at a time, each on its cores; stopped, ended and failed apart."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hemafast.config import to_json
from hemafast.errors import StoppedError
from hemafast.experiments import apart as room
from hemafast.experiments.apart import processes_for, shares, train_apart
from hemafast.experiments.runs import Scored, run_all
from hemafast.run_folder import run_folders, summarise

ROOT = Path(__file__).parents[2]


@pytest.fixture
def told_to(monkeypatch):
    """`told_to(code)`: processes run these lines of Python instead of a training."""

    def make(code):
        start = room.subprocess.Popen

        def popen(command, **more):
            return start([command[0], "-c", code], **more)

        monkeypatch.setattr(
            room, "subprocess", SimpleNamespace(Popen=popen, TimeoutExpired=room.subprocess.TimeoutExpired)
        )

    return make


def _left_running():
    return [path.name for path in Path("/proc").glob("[0-9]*") if _is_child(path)]


def _is_child(path):
    try:
        return (
            f"PPid:\t{os.getpid()}\n" in (path / "status").read_text()
            and "State:\tZ" not in (path / "status").read_text()
        )
    except OSError:
        return False


@pytest.mark.nightly
def test_runs_in_processes_are_those_of_this_process(settings, tmp_path):
    alone, apart = ({str(seed): settings(tmp_path / name / str(seed), seed=seed) for seed in (1, 2)} for name in "ab")
    expected, found = dict(run_all(alone)), dict(run_all(apart, processes=2))
    assert found.keys() == expected.keys()
    for name, outcome in expected.items():
        assert isinstance(found[name], Scored)
        assert found[name].metrics["pooled"] == outcome.metrics["pooled"]
        assert (found[name].folder / "report.html").is_file()
    assert dict(run_all(apart, processes=2)) == found  # without a process: nothing is left to do


@pytest.mark.nightly
def test_a_failure_in_a_process_is_a_reason_and_ends_no_other(settings, tmp_path):
    configs = {
        "broken": settings(tmp_path / "broken", weights="no_such_weights.pth"),
        "one": settings(tmp_path / "one"),
    }
    found = dict(train_apart(configs, 2))
    assert "no_such_weights" in found["broken"].reason
    assert found["broken"].folder is None
    assert (found["one"].folder, found["one"].reason) == (run_folders(tmp_path / "one")[0], "")


@pytest.mark.nightly
def test_a_signal_stops_all_runs_which_save_and_the_same_call_continues(settings, tmp_path):
    configs, before = (
        {str(seed): settings(tmp_path / str(seed), seed=seed, epochs=400) for seed in (1, 2)},
        _left_running(),
    )

    def stop_when_both_train():
        while len([one for seed in configs for one in run_folders(tmp_path / seed)]) < 2:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop_when_both_train, daemon=True).start()
    with pytest.raises(StoppedError) as stopped:
        list(train_apart(configs, 2))
    assert stopped.value.exit_code == 143
    assert set(_left_running()) <= set(before)
    for seed in configs:
        (folder,) = run_folders(tmp_path / seed)
        assert summarise(folder).state == "stopped"
        assert (folder / "last_model.ckpt").is_file()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "ended by SIGKILL, as it is where memory runs out"),
        ("raise SystemExit(143)", "stopped by SIGTERM; call again to continue"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("raise SystemExit(7)", "ended with exit code 7"),
        ('print(\'noise\'); print(\'{"folder": null, "reason": "too large"}\')', "too large"),
        ('print(\'{"folder": "there", "reason": ""}\')', ""),
    ],
)
def test_however_a_process_ends_there_is_a_reason(settings, tmp_path, told_to, code, reason):
    told_to(code)
    ((name, found),) = train_apart({"one": settings(tmp_path)}, 1)
    assert name == "one"
    assert found.reason.endswith(reason)
    assert bool(found.reason) == bool(reason) == (found.folder is None)


def test_no_more_run_at_a_time_than_asked_for_and_each_is_told_its_settings(settings, tmp_path, told_to):
    told_to(
        "import sys, json, os, time; from pathlib import Path; where = Path(json.load(sys.stdin)['output']);"
        "(where / str(os.getpid())).touch(); seen = len(list(where.iterdir())); time.sleep(0.3);"
        "(where / str(os.getpid())).unlink(); print(json.dumps({'folder': None, 'reason': str(seen)}))"
    )
    found = dict(train_apart({str(one): settings(tmp_path) for one in range(5)}, 2))
    assert sorted(found) == list("01234")
    assert {ended.reason for ended in found.values()} <= {"1", "2"}


def test_whoever_stops_listening_leaves_no_process(settings, tmp_path, told_to):
    told_to(
        "import sys, json, time; seed = json.load(sys.stdin)['seed'];"
        'time.sleep(600 * seed); print(\'{"folder": null, "reason": ""}\')'
    )
    configs, before = {str(seed): settings(tmp_path, seed=seed) for seed in (1, 0)}, _left_running()
    runs = train_apart(configs, 2)
    assert next(runs)[0] == "0"
    runs.close()
    assert set(_left_running()) <= set(before)


def test_a_process_outlives_nobody(settings, tmp_path):
    """The parent is killed: its run is told, and saves."""
    script = tmp_path / "parent.py"
    config = settings(tmp_path / "runs", epochs=100_000)
    script.write_text(
        "import json, sys\nfrom hemafast.config import TrainConfig, checked\n"
        "from hemafast.experiments.apart import train_apart\n"
        "list(train_apart({'one': checked(TrainConfig, json.loads(sys.argv[1]))}, 1))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, script, to_json(config)], env=environment)
    while not run_folders(config.output) and parent.poll() is None:
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    (folder,) = run_folders(config.output)
    for _ in range(300):
        if summarise(folder).state != "running":
            break
        time.sleep(0.1)
    assert summarise(folder).state == "stopped"


@pytest.mark.parametrize(
    ("changes", "runs", "expected"),
    [({}, 5, 4), ({}, 3, 3), ({"time_budget": 60}, 5, 1), ({"device": "cuda"}, 5, 1)],
)
def test_runs_at_a_time_are_as_many_as_cores_but_one_on_a_gpu_or_under_a_budget(
    settings, tmp_path, monkeypatch, changes, runs, expected
):
    monkeypatch.setattr(room, "cores", lambda: 4)
    monkeypatch.setattr(room, "uses_gpu", lambda device: device == "cuda")
    assert processes_for(settings(tmp_path, **changes), runs) == expected


@pytest.mark.parametrize(
    ("available", "processes", "expected"),
    [
        ({0, 1, 2, 3, 5}, 2, [[0, 1], [2, 3]]),
        ({4, 6}, 2, [[4], [6]]),
        ({7}, 3, [[7], [7], [7]]),
        ({0, 1}, 3, [[0], [1], [0]]),
    ],
)
def test_cores_are_dealt_evenly(monkeypatch, available, processes, expected):
    monkeypatch.setattr(room.os, "sched_getaffinity", lambda _: available)
    assert shares(processes) == expected
