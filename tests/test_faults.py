"""The battery of faults counts as lost what a command gets wrong, ends in time, and writes what the page shows."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from rich.console import Console

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import fault_tables  # scripts beside the package, not parts of it
import run_faults
from faults import native
from faults.battery import Battery
from faults.inject import INJECTORS, NEED_LIBRARY
from faults.jobs import names
from faults.listed import FAULTS
from faults.tally import Tally

ROOT = Path(__file__).resolve().parent.parent
WRONG = {
    "right": None,
    "leaves half a file": "stray: .out.part",
    "leaves a file in TMPDIR": "left in TMPDIR: half",
    "goes on wrongly": "another result: out",
    "prints a traceback": "traceback: ValueError: no",
    "exits with a code of its own": "exit code N",
    "crashes": "ended by SIGSEGV",
    "leaves a process": "orphan: ",
    "ends without a message": "no message: nothing said",
}
"""What stands in for the command, and the problem that is found."""

BATTERY = """
    import ctypes, json, os, random, sys, time
    from pathlib import Path

    from faults import inject, process
    from faults.battery import Battery
    from faults.jobs import Job

    place, wanted = Path(sys.argv[1]), sys.argv[2:]
    process.adopt_orphans()
    process._PATIENCE = 0.1
    wrong = None

    def main():
        time.sleep(0.02)
        Path("out").write_text("out")
        if wrong:
            WAYS[wrong]()

    def fail():
        raise ValueError("no")

    def leave_a_process():
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)

    WAYS = {
        "leaves half a file": Path(".out.part").touch,
        "leaves a file in TMPDIR": lambda: Path(os.environ["TMPDIR"], "half").touch(),
        "goes on wrongly": lambda: Path("out").write_text("other"),
        "prints a traceback": fail,
        "exits with a code of its own": lambda: sys.exit(7),
        "crashes": lambda: ctypes.string_at(0),
        "leaves a process": leave_a_process,
        "ends without a message": lambda: sys.exit(2),
        "right": lambda: None,
    }
    job = Job("job", (), ("src",), lambda room: {"out": (room / "out").read_text()})
    inject.JOBS = {"job": job}
    inject.KILLS = 2
    counted = {}
    for number, each in enumerate(wanted):
        battery = Battery(main, place / str(number), random.Random(1), time.monotonic() + 60)
        (battery.base / "src").mkdir()
        wrong = None
        battery.undisturbed(job)
        wrong = each
        inject.kill(battery)
        counted[each] = battery.tally("kill").to_json()
    print(json.dumps(counted))
"""


def called(script: str, *arguments: object, **environment: str) -> dict:
    """What a program of its own prints as JSON: its process is forked, and this one has threads."""
    paths = os.pathsep.join([str(ROOT / "tools"), str(ROOT)])
    program = [sys.executable, "-c", "\n".join(line[4:] for line in script.splitlines()), *map(str, arguments)]
    done = subprocess.run(
        program,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": paths, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def counted(tmp_path_factory) -> dict:
    return called(BATTERY, tmp_path_factory.mktemp("battery"), *WRONG)


@pytest.mark.parametrize("way", WRONG)
def test_a_fault_that_is_not_survived_is_counted_as_lost(counted, way):
    found, problem = counted[way], WRONG[way]
    assert found["injected"] >= 1
    assert found["injected"] == found["survived"] + found["lost"]
    if problem is None:
        assert (found["lost"], found["reasons"]) == (0, {})
    else:
        assert found["lost"] == found["injected"]
        assert any(f"job: {problem}" in reason for reason in found["reasons"]), found["reasons"]


DISK = """
    import ctypes, errno, json, os, sys, time
    from pathlib import Path
    from faults.native import FailingDisk, JumpingClock, calls_made, is_loaded

    folder, beside, told = Path(sys.argv[1], "in"), Path(sys.argv[1], "beside"), {"loaded": is_loaded()}
    folder.mkdir()

    def write(file):
        with open(file, "wb", buffering=0) as stream:
            return stream.write(b"0123456789")

    def failure(work):
        try:
            work()
        except OSError as error:
            return errno.errorcode[error.errno]

    FailingDisk(folder, "write", 2, errno.ENOSPC).arm()
    told["once"] = [failure(lambda: write(folder / "a")) for _ in range(3)]
    told["elsewhere"] = failure(lambda: [write(beside) for _ in range(3)])
    told["calls"] = calls_made()
    FailingDisk(folder, "rename", 1, errno.EIO, lasting=True).arm()
    told["lasting"] = [failure(lambda: write(folder / "a")), failure(lambda: (folder / "a").rename(folder / "b")),
                       failure(lambda: write(folder / "a"))]
    FailingDisk(folder, "write", 1).arm()
    told["short"] = [write(folder / "a"), write(folder / "a")]
    before = time.time(), time.monotonic()
    JumpingClock(0.05, -3600).arm()
    told["at first"] = round((time.time() - before[0]) / 60)
    time.sleep(0.06)
    told["jumped"] = [round((time.time() - before[0]) / 60), round((time.monotonic() - before[1]) / 60)]
    print(json.dumps(told))
"""


def test_the_failing_disk_and_the_jumping_clock_do_what_is_asked_of_them(tmp_path):
    library = native.build(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    told = called(DISK, tmp_path, LD_PRELOAD=str(library))
    assert told.pop("calls") == {"write": 3, "fsync": 0, "rename": 0, "open": 3}
    assert told == {
        "loaded": True,
        "once": [None, "ENOSPC", None],
        "elsewhere": None,
        "lasting": [None, "EIO", "EIO"],
        "short": [5, 10],
        "at first": 0,
        "jumped": [-60, 0],
    }


def test_the_same_files_of_other_moments_have_the_same_names(tmp_path):
    events = "20260102_030405_test_resnet/tb/events.out.tfevents.1.vm.2.0"
    found = []
    for run in (events, "20270102_030405_test_resnet-2/.lock.part"):
        file = tmp_path / str(len(found)) / "runs" / run
        file.parent.mkdir(parents=True)
        file.touch()
        found.append(names(tmp_path / str(len(found))))
    assert found == [
        ["runs", "runs/_test_resnet", "runs/_test_resnet/tb", "runs/_test_resnet/tb/events.out.tfevents."],
        ["runs", "runs/_test_resnet", "runs/_test_resnet/.lock.part"],
    ]


def test_every_fault_of_the_page_has_its_injector_and_its_turn():
    listed = [fault.name for fault in FAULTS]
    assert listed == list(INJECTORS)
    assert set(run_faults.ORDER) == set(listed)


def test_an_unknown_fault_is_refused():
    with pytest.raises(typer.BadParameter, match="flood: known are kill, signals"):
        next(run_faults.chosen(["flood"]))


def test_slow_faults_come_once():
    assert list(run_faults.chosen(["rank"])) == ["rank"]


@pytest.fixture
def battery(tmp_path, monkeypatch) -> Battery:
    """A battery with a second of time, whose injectors take some milliseconds; `disk` loses all."""
    made = Battery(lambda: None, tmp_path / "rooms", random.Random(0), time.monotonic() + 0.2)

    def injector(name):
        def inject(battery):
            time.sleep(0.005)
            battery.tally(name).add("job", ["no"] if name == "disk" else [])

        return inject

    monkeypatch.setattr(run_faults, "INJECTORS", {name: injector(name) for name in INJECTORS})
    return made


def test_the_battery_ends_in_time_and_its_long_form_after_enough_kills(battery, monkeypatch):
    monkeypatch.setattr(native, "is_loaded", lambda: True)
    run_faults.inject(battery, (), 0, Console(quiet=True))
    assert battery.over
    assert all(battery.tally(name).injected for name in INJECTORS)
    others = battery.tally("signals").injected
    run_faults.inject(battery, (), battery.tally("kill").injected + 7, Console(quiet=True))
    assert battery.tally("signals").injected == others


def test_batteries_at_once_share_the_kills_and_their_counts_are_added(monkeypatch):
    asked = []

    class Run:
        def __init__(self, command, **_):
            options = dict(zip(command[2::2], command[3::2], strict=True))
            asked.append((options["--kills"], options["--seed"], options["--only"]))
            tally = Tally()
            tally.add("train", ["torn"] if options["--seed"] == "8" else [], int(options["--kills"]))
            Path(options["--json"]).write_text(json.dumps({"faults": {"kill": tally.to_json()}}), encoding="utf-8")

        def wait(self):
            pass

    monkeypatch.setattr(run_faults.subprocess, "Popen", Run)
    found = run_faults.side_by_side(2, {"minutes": "5", "kills": 999, "only": ["kill"], "seed": 7})
    assert asked == [("500", "7", "kill"), ("500", "8", "kill")]
    assert (found["kill"].injected, found["kill"].lost) == (1000, 500)
    assert found["kill"].reasons == {"train: torn": 1}
    assert found["kill"].details == {"train": 1000}


def test_what_is_written_down_names_the_options_that_were_given():
    asked = {"minutes": "5", "kills": 0, "only": ["disk", "kill"], "seed": 0, "jobs": 0}
    command = run_faults.result({}, 60.0, asked)["command"]
    assert command == "python tools/run_faults.py --minutes 5 --only disk --only kill --seed 0"


def test_what_needs_a_compiler_is_skipped_with_its_reason(battery, monkeypatch, capsys):
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    run_faults.inject(battery, ("disk", "signals"), 0, Console(quiet=True))
    assert "disk" in NEED_LIBRARY
    assert battery.tally("disk").to_json()["skipped"] == "no C compiler: install cc"
    assert battery.tally("signals").injected


def test_the_page_shows_counts_and_reasons():
    killed, filled, skipped = Tally(), Tally(), Tally(skipped="no C compiler: install cc")
    killed.add("train", [], 8)
    filled.add("evaluate: EIO of write", ["traceback: no"])
    filled.add("evaluate: EIO of write", [])
    tallies = {"kill": killed, "disk": filled, "clock": skipped}
    facts = {"cores": "2", "processor": "one", "torch": "2"}
    counted = {name: tally.to_json() for name, tally in tallies.items()}
    result = {"command": "run", "minutes": 5.0, "machine": facts, "faults": counted}
    made = fault_tables.tables({"faults": result})
    lines = made["faults_injected"].splitlines()[2:]
    rows = {line.split("`")[1]: line for line in lines if line.startswith("| `")}
    assert list(rows) == [fault.name for fault in FAULTS]
    assert rows["kill"].endswith("| 8 | 8 | 0 |")
    assert rows["disk"].endswith("| 2 | 1 | 1 |")
    assert rows["clock"].endswith("| no C compiler: install cc |  |  |")
    assert rows["rank"].endswith("| 0: no time was left |  |  |")
    assert "| `disk` | evaluate: EIO of write: traceback: no | 1 |" in made["faults_lost"]
    assert made["faults"].count("\n") == len(FAULTS) + 1
    result["faults"] = {"kill": killed.to_json()}
    assert fault_tables.tables({"faults": result})["faults_lost"] == "Nothing was lost."
