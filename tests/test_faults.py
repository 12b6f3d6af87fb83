"""The battery of faults counts as lost what a command gets wrong, ends in time, and writes what the page shows."""

import json
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
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
from run_faults import Store

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
    """A battery whose time is over when each injector had its turn; `disk` loses all."""
    made, called = Battery(lambda: None, tmp_path / "rooms", random.Random(0)), set()

    def injector(name):
        def inject(battery):
            called.add(name)
            battery.tally(name).add("job", ["no"] if name == "disk" else [])
            if called == INJECTORS.keys():
                battery.deadline = 0

        return inject

    monkeypatch.setattr(run_faults, "INJECTORS", {name: injector(name) for name in INJECTORS})
    return made


@pytest.fixture
def store(tmp_path) -> Store:
    """A file that counts nothing yet."""
    return Store(tmp_path / "counts" / "faults.json", ["--seed", "0"], {"processor": "one"})


def killed(times: int, lost: int = 0) -> Tally:
    tally = Tally()
    tally.add("train", [], times - lost)
    tally.add("train", ["torn"], lost)
    return tally


def test_the_battery_ends_in_time_and_its_long_form_after_enough_kills(battery, store, monkeypatch):
    monkeypatch.setattr(native, "is_loaded", lambda: True)
    run_faults.inject(battery, (), 0, store, Console(quiet=True))
    assert battery.over
    before = store.add({})
    assert all(before[name].injected for name in INJECTORS)
    run_faults.inject(battery, (), before["kill"].injected + 7, store, Console(quiet=True))
    after = store.add({})
    assert after["kill"].injected == before["kill"].injected + 7
    assert after["signals"] == before["signals"]


def test_what_was_counted_before_the_battery_was_stopped_is_kept_and_added_to(battery, store, monkeypatch):
    kill, calls = run_faults.INJECTORS["kill"], iter(range(4))

    def kill_three_times(battery):
        if next(calls) == 3:
            raise KeyboardInterrupt
        kill(battery)

    monkeypatch.setitem(run_faults.INJECTORS, "kill", kill_three_times)
    with pytest.raises(KeyboardInterrupt):
        run_faults.inject(battery, ("kill",), 0, store, Console(quiet=True))
    monkeypatch.setitem(run_faults.INJECTORS, "kill", kill)
    battery.deadline = 0
    run_faults.inject(battery, ("kill",), 12, store, Console(quiet=True))
    assert store.add({})["kill"].injected == 12


def test_counts_of_several_calls_are_added(store):
    store.add({"kill": killed(1000, lost=3), "disk": Tally()}, seconds=90)
    for _ in range(2):
        later = replace(store, options=["--only", "kill"])
        later.add({}, seconds=15)
    later.add({"kill": killed(5, lost=1), "clock": Tally(skipped="no C compiler")})
    kept = json.loads(store.file.read_text(encoding="utf-8"))
    assert kept["command"] == "python tools/run_faults.py --seed 0; python tools/run_faults.py --only kill"
    assert kept["minutes"] == 2
    assert kept["faults"] == {
        "kill": {
            "injected": 1005,
            "survived": 1001,
            "lost": 4,
            "details": {"train": 1005},
            "reasons": {"train: torn": 2},
        },
        "disk": Tally().to_json(),
        "clock": {**Tally().to_json(), "skipped": "no C compiler"},
    }


def test_batteries_at_once_lose_none_of_each_others_counts(store):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: store.add({"kill": killed(1)}), range(40)))
    assert store.add({})["kill"].injected == 40


def test_counts_of_another_processor_are_not_added_to(store):
    store.add({"kill": killed(1)})
    with pytest.raises(SystemExit, match="measured on one"):
        replace(store, machine={"processor": "two"}).add({"kill": killed(1)})
    assert store.add({})["kill"].injected == 1


def test_batteries_at_once_write_to_one_file_with_moments_of_their_own(monkeypatch, tmp_path):
    asked = []

    class Run:
        def __init__(self, args, **_):
            self.args = args
            asked.append(dict(zip(args[2::2], args[3::2], strict=True)))

        def wait(self):
            return int(asked[-1]["--seed"])

    monkeypatch.setattr(run_faults.subprocess, "Popen", Run)
    given = {"minutes": "5", "kills": 999, "only": ["kill"], "seed": 1, "jobs": 2}
    run_faults.side_by_side(2, given, tmp_path / "f.json")
    assert [one.pop("--number") for one in asked] == ["0", "1"]
    file = str(tmp_path / "f.json")
    assert asked == 2 * [
        {"--minutes": "5", "--kills": "999", "--only": "kill", "--seed": "1", "--jobs": "2", "--json": file}
    ]
    with pytest.raises(SystemExit, match="2 of 2 batteries could not work"):
        run_faults.side_by_side(2, {**given, "seed": 7}, tmp_path / "f.json")


def test_what_is_written_down_names_the_options_that_were_given():
    asked = {"minutes": "5", "kills": 0, "only": ["disk", "kill"], "seed": 0, "jobs": 0}
    assert run_faults.options(asked) == ["--minutes", "5", "--only", "disk", "--only", "kill", "--seed", "0"]


def test_kills_are_not_waited_for_if_none_is_injected():
    with pytest.raises(typer.BadParameter, match="--kills needs --only kill"):
        run_faults.main(kills=1, only=["disk"])


def test_what_needs_a_compiler_is_skipped_with_its_reason(battery, store, monkeypatch):
    monkeypatch.setattr(native, "is_loaded", lambda: False)
    names = iter(["disk", "signals"])
    monkeypatch.setattr(run_faults, "chosen", lambda only: names)
    run_faults.inject(battery, (), 0, store, Console(quiet=True))
    assert "disk" in NEED_LIBRARY
    counted = store.add({})
    assert counted["disk"].to_json()["skipped"] == "no C compiler: install cc"
    assert counted["signals"].injected


def test_the_page_shows_counts_and_reasons():
    filled, skipped = Tally(), Tally(skipped="no C compiler: install cc")
    filled.add("evaluate: EIO of write", ["traceback: no"])
    filled.add("evaluate: EIO of write", [])
    tallies = {"kill": killed(8), "disk": filled, "clock": skipped}
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
    result["faults"] = {"kill": killed(8).to_json()}
    assert fault_tables.tables({"faults": result})["faults_lost"] == "Nothing was lost."
