"""The injectors: each call is one episode, which ends with a command that may come to its end."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from faults.battery import Battery, judged
from faults.jobs import JOBS, NETWORK, Job, finished_run
from faults.native import FailingDisk, JumpingClock
from faults.process import Ended, Started

KILLS = 8
"""Kills of a command before it may end."""
STARTS = 30
"""Starts in a row that are killed within a second."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_SHIFTS = (-3e8, -86400.0, -3600.0, -120.0, 120.0, 3600.0, 86400.0, 3e8)  # seconds
_BUDGET = 4.0  # seconds
_LATE = 30.0  # seconds that a run may end behind its budget: others may use this machine
_FROM_FILES = replace(JOBS["train"], name="train from files", arguments=(*JOBS["train"].arguments, "--input", "files"))

Injector = Callable[[Battery], None]


def _moment(battery: Battery, seconds: float) -> None:
    """Wait for a random part of these seconds."""
    time.sleep(battery.random.uniform(0, seconds))


def _kill(process: Started) -> tuple[bool, Ended]:
    hit = process.send(signal.SIGKILL)
    return hit, process.end()


def kill(battery: Battery) -> None:
    """Kill one command up to KILLS times, then let it end: the next command with each call."""
    tally, names = battery.tally("kill"), list(JOBS)
    job = JOBS[names[battery.turn % len(names)]]
    battery.turn += 1
    seconds = battery.undisturbed(job).seconds
    battery.begin(job)
    killed, problems = 0, list[str]()
    for _ in range(KILLS):
        process = battery.start(job)
        _moment(battery, seconds)
        hit, ended = _kill(process)
        killed += hit
        problems += judged(ended, [signal.SIGKILL])
        if ended.code == 0:
            problems += battery.compared(job)
            battery.begin(job)
        else:
            problems += battery.torn()
    tally.add(job.name, problems + battery.finish(job), killed)


def signals(battery: Battery) -> None:
    """Two signals, one after the other, to a training; then resume it."""
    job = JOBS["train"]
    seconds = battery.undisturbed(job).seconds
    battery.begin(job)
    first, second = battery.random.sample(_SIGNALS, 2)
    soon = battery.random.random() < 0.5
    process = battery.start(job)
    _moment(battery, 0.8 * seconds)
    sent = process.send(first)
    time.sleep(battery.random.uniform(0, 0.9) if soon else battery.random.uniform(1.05, 1.5))
    process.send(second)
    problems = judged(process.end(), [first, second]) + battery.torn() + battery.finish(job)
    battery.tally("signals").add(f"{first.name}+{second.name}, {'at once' if soon else 'later'}", problems, int(sent))


def disk(battery: Battery) -> None:
    """Let a call fail that writes; then give the same command again, on a disk that works."""
    job = JOBS[battery.random.choice([name for name in JOBS if name != "save"])]
    calls = battery.undisturbed(job).calls
    kind = battery.random.choice([kind for kind, made in calls.items() if made])
    error, lasting = battery.random.choice(_ERRORS), battery.random.random() < 0.5
    nth = battery.random.randint(1, calls[kind])
    battery.begin(job)
    ended = battery.start(job, faults=[FailingDisk(battery.room, kind, nth, error, lasting)]).end()
    problems = judged(ended) + battery.torn() + _parts(battery.room)
    if ended.code == 0 and job.name == "adapt":
        battery.begin(job)
    form = f"{job.name}: {errno.errorcode[error]} of {kind}{', lasting' if lasting else ''}"
    battery.tally("disk").add(form, problems + battery.finish(job))


def _parts(room: Path) -> list[str]:
    """Half files that a command has left which was not killed."""
    found = sorted(path.name for path in room.rglob("*.part"))
    return [f"left: {', '.join(found[:3])}"] if found else []


def short_write(battery: Battery) -> None:
    """Let all writes, from some on, take half of the bytes: the command must not notice."""
    job = JOBS[battery.random.choice([name for name in JOBS if name != "save"])]
    calls = battery.undisturbed(job).calls
    battery.begin(job)
    nth, lasting = battery.random.randint(1, max(calls["write"], 1)), battery.random.random() < 0.5
    ended = battery.start(job, faults=[FailingDisk(battery.room, "write", nth, 0, lasting)]).end()
    problems = judged(ended) or ([f"exit code {ended.code}"] if ended.code else battery.compared(job))
    battery.tally("short-write").add(job.name, problems)


def clock(battery: Battery) -> None:
    """Set the clock in the middle of a training."""
    job, shift = JOBS["train"], battery.random.choice(_SHIFTS)
    budgeted = battery.random.random() < 0.5
    seconds = battery.undisturbed(job).seconds
    battery.begin(job)
    jump = JumpingClock(battery.random.uniform(0, seconds), shift)
    more = ("--time-budget", str(_BUDGET)) if budgeted else ()
    ended = battery.start(job, *more, faults=[jump]).end()
    problems = judged(ended) or ([f"exit code {ended.code}"] if ended.code else [])
    if budgeted and not problems:
        problems = _on_time(ended, battery.room)
    elif not problems:
        problems = battery.compared(job) + _negative(battery.room)
    battery.tally("clock").add(f"{shift:+,.0f} s, {'budget' if budgeted else 'epochs'}", problems)


def _on_time(ended: Ended, room: Path) -> list[str]:
    early, late = ended.seconds < _BUDGET / 4, ended.seconds > _BUDGET + _LATE
    return (
        _negative(room) + (["the budget is not used"] if early else []) + (["the budget is exceeded"] if late else [])
    )


def _negative(room: Path) -> list[str]:
    """Measurements below zero in the log of the only finished run."""
    from hemafast.engine.journal import read_rows

    rows = read_rows(finished_run(room / "runs"))
    timed = [(name, value) for row in rows for name, value in row.items() if name.endswith(("seconds", "share"))]
    return sorted({f"{name} is negative" for name, value in timed if float(value) < 0})


def files(battery: Battery) -> None:
    """Cut, delete or replace a file under a running command; put it back, and give the command again."""
    job, pattern = battery.random.choice(
        [
            (JOBS["train"], "data/packed/*"),
            (JOBS["train"], "data/dataset.json"),
            (_FROM_FILES, "data/images/*/*/*"),
            (JOBS["prepare"], "src/*.zip"),
        ]
    )
    how = battery.random.choice(["cut", "deleted", "replaced"])
    seconds = battery.undisturbed(job).seconds
    battery.begin(job)
    process = battery.start(job)
    _moment(battery, seconds)
    for file in battery.room.glob(pattern):
        _HARM[how](file)
    problems = judged(process.end()) + battery.torn("runs")
    for name in job.starts_from:
        shutil.rmtree(battery.room / name)
        shutil.copytree(battery.base / name, battery.room / name)
    battery.tally("files").add(f"{job.name}: {pattern} {how}", problems + battery.finish(job))


def _cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _replace(file: Path) -> None:
    other = file.with_name(".other")
    other.write_bytes(b"something else")
    other.replace(file)


_HARM: dict[str, Callable[[Path], None]] = {"cut": _cut, "deleted": Path.unlink, "replaced": _replace}


def resume_twice(battery: Battery) -> None:
    """Resume a stopped run two or three times at once."""
    job = JOBS["train"]
    battery.undisturbed(job)
    run = _stopped_run(battery, job)
    resume = replace(job, arguments=("train", "--resume", str(run), "--quiet"))
    processes = [battery.start(resume, number=number) for number in range(battery.random.choice([2, 3]))]
    ended = [process.end() for process in processes]
    winners = [process.pid for process, one in zip(processes, ended, strict=True) if one.code == 0]
    problems = [problem for one in ended for problem in judged(one)]
    if len(winners) != 1:
        problems.append(f"{len(winners)} of {len(ended)} have trained")
    elif not all(str(winners[0]) in one.said for one in ended if one.code):
        problems.append("a refusal does not name the process that trains")
    battery.tally("resume-twice").add(f"{len(ended)} at once", problems or battery.compared(job))


def _stopped_run(battery: Battery, job: Job) -> Path:
    """A run that was stopped by a signal after its first checkpoint."""
    while True:
        battery.begin(job)
        process = battery.start(job)
        while process.alive() and not list(battery.room.glob("runs/*/last_model.ckpt")):
            time.sleep(0.002)
        process.send(signal.SIGTERM)
        if process.end().code == 128 + signal.SIGTERM:
            return next(iter((battery.room / "runs").iterdir()))


def restarts(battery: Battery) -> None:
    """Start a training many times, and kill it within a second each time."""
    job = JOBS["train"]
    battery.undisturbed(job)
    battery.begin(job)
    killed, problems = 0, list[str]()
    for _ in range(STARTS):
        process = battery.start(job)
        _moment(battery, 1.0)
        hit, ended = _kill(process)
        killed += hit
        problems += judged(ended, [signal.SIGKILL])
    battery.tally("restarts").add("train", problems + battery.torn() + battery.finish(job), killed)


def surroundings(battery: Battery) -> None:
    """Evaluate in a new process whose TMPDIR is gone, or whose locale is not installed."""
    job = JOBS["evaluate"]
    battery.undisturbed(job)
    for name, value in (("TMPDIR", str(battery.place / "gone")), ("LC_ALL", "xx_XX.UTF-8")):
        battery.begin(job)
        command = [sys.executable, "-m", "hemafast", *job.arguments]
        environment = {**os.environ, "TMPDIR": str(battery.temporary), name: value}
        began = time.monotonic()
        done = subprocess.run(command, cwd=battery.room, env=environment, capture_output=True, text=True, check=False)
        problems = judged(Ended(done.returncode, done.stdout + done.stderr, time.monotonic() - began))
        if done.returncode == 0:
            problems += battery.compared(job)
        battery.tally("surroundings").add(name, problems)


_RANKS = Job(
    "train under torchrun",
    ("train", "--data", "data", "--output", "runs", "--epochs", "6", "--save-every", "0.0001", *NETWORK),
    ("data",),
    JOBS["train"].result,
)


def rank(battery: Battery) -> None:
    """Kill the second of two processes that train together; torchrun starts both again."""
    wanted, _ = _under_torchrun(battery, kill_second=False)
    problems, hit = _under_torchrun(battery, kill_second=True)
    battery.tally("rank").add("two processes", wanted or problems, int(hit))


def _under_torchrun(battery: Battery, *, kill_second: bool) -> tuple[list[str], bool]:
    """Train once; problems, and whether the process was killed. The result without a kill is kept as undisturbed."""
    battery.begin(_RANKS)
    options = ("--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--log-dir", str(battery.logs))
    command = [sys.executable, "-m", "torch.distributed.run", *options, "-m", "hemafast", *_RANKS.arguments]
    log, hit = battery.logs / "torchrun.log", False
    with log.open("w") as said:
        environment = {**os.environ, "TMPDIR": str(battery.temporary)}
        process = subprocess.Popen(command, cwd=battery.room, env=environment, stdout=said, stderr=said)
        if kill_second:
            hit = _kill_second(battery, process)
        code = process.wait(300)
    if code:
        return [f"exit code {code} under torchrun"], hit
    return battery.kept(_RANKS) if not kill_second else battery.compared(_RANKS), hit


def _kill_second(battery: Battery, process: subprocess.Popen[bytes]) -> bool:
    while process.poll() is None and not list(battery.room.glob("runs/*/last_model.ckpt")):
        time.sleep(0.01)
    _moment(battery, 0.5)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8")
    for pid in map(int, children.split()):
        if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes():
            os.kill(pid, signal.SIGKILL)
            return True
    return False


INJECTORS: dict[str, Injector] = {
    "kill": kill,
    "signals": signals,
    "disk": disk,
    "short-write": short_write,
    "clock": clock,
    "files": files,
    "resume-twice": resume_twice,
    "restarts": restarts,
    "rank": rank,
    "surroundings": surroundings,
}
"""By the name of the fault."""

NEED_LIBRARY = frozenset({"disk", "short-write", "clock"})
"""Faults that a C compiler is needed for."""
