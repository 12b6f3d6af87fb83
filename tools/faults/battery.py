"""One battery: its rooms, what undisturbed commands leave, and the checks after a fault."""

from __future__ import annotations

import importlib
import json
import math
import random
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from faults.jobs import Job, Result, fresh_room, make_base, names, refuse_torn
from faults.native import FailingDisk, calls_made, is_loaded
from faults.process import Arms, Ended, Started, in_child, start, threads
from faults.tally import Tally

OURS = frozenset({0, 1, 2})
"""Exit codes of hemafast: done, something was lost or failed and is named, and an error that a user can mend."""

_THREADED = ("onnxruntime", "nvidia.dali.plugin", "torch._inductor.compile_worker")  # start threads when imported
_TRACEBACK = "Traceback (most recent call last)"
_VOLATILE = re.compile(r"(?<!\w)/\S+/|0x[0-9a-f]+|\d{8}_\d{6}|\b\d+\b")


@dataclass(frozen=True)
class Undisturbed:
    """What a command leaves that nothing has happened to."""

    result: Result
    names: list[str]
    seconds: float
    calls: dict[str, int]
    """Calls that write, by kind, if the failing disk is loaded."""


@dataclass
class Battery:
    """What all injectors share."""

    main: Callable[[], object]
    """The command line."""
    place: Path
    """A folder of its own."""
    random: random.Random
    deadline: float = math.inf
    """A moment of time.monotonic."""
    turn: int = 0
    """Which command is killed next: the jobs take turns."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """What was counted and not yet taken."""
    _known: dict[str, Undisturbed] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in (self.base, self.logs, self.temporary):
            folder.mkdir(parents=True)

    @property
    def base(self) -> Path:
        """What jobs start from."""
        return self.place / "base"

    @property
    def room(self) -> Path:
        """The working folder of the present job; always the same path, as runs remember theirs."""
        return self.place / "room"

    @property
    def logs(self) -> Path:
        """What processes say."""
        return self.place / "logs"

    @property
    def temporary(self) -> Path:
        """TMPDIR of the processes."""
        return self.place / "tmp"

    @property
    def over(self) -> bool:
        """Whether the time is used up."""
        return time.monotonic() >= self.deadline

    def build(self) -> None:
        """Make what the jobs start from."""
        make_base(self.base, self._first)

    def _first(self, *arguments: str) -> None:
        self._import(self.place / "modules.json", self._ended_whole(arguments, self.base))

    def _ended_whole(self, arguments: Sequence[str], cwd: Path, faults: Sequence[Arms] = ()) -> Ended:
        ended = self._start(arguments, cwd, faults=faults, at_end=self._tell).end(600)
        if ended.code:
            raise RuntimeError(f"hemafast {' '.join(arguments)} ends with {ended.code}, undisturbed: {ended.said}")
        return ended

    def _tell(self) -> None:
        """In a process that ends: say which modules it needed, so that those after it need not import them."""
        said = {"modules": list(sys.modules), "calls": calls_made() if is_loaded() else {}}
        (self.place / "modules.json").write_text(json.dumps(said), encoding="utf-8")

    def _import(self, file: Path, _: Ended) -> dict[str, int]:
        """Import what a process has imported; returns the calls it made."""
        said = json.loads(file.read_text(encoding="utf-8"))
        for name in said["modules"]:
            if not name.startswith(("__", *_THREADED)) and name not in sys.modules:
                with suppress(Exception):
                    importlib.import_module(name)
        if threads() > 1:
            raise RuntimeError("an import has started a thread: forking this process would not be safe")
        calls: dict[str, int] = said["calls"]
        return calls

    def _start(self, arguments: Sequence[str], cwd: Path, number: int = 0, **options: Any) -> Started:
        environment = {"TMPDIR": str(self.temporary), **options.pop("environment", {})}
        log = self.logs / f"{number}.log"
        return start(self.main, arguments, cwd=cwd, log=log, environment=environment, **options)

    def begin(self, job: Job) -> None:
        """Give a job a new room."""
        fresh_room(job, self.base, self.room)
        for left in self.temporary.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()

    def start(self, job: Job, *more: str, faults: Sequence[Arms] = (), number: int = 0, **options: Any) -> Started:
        """Start the job in its room; `number` tells apart those that run at once."""
        return self._start((*job.arguments, *more), self.room, number, faults=faults, **options)

    def undisturbed(self, job: Job) -> Undisturbed:
        """What the job leaves without a fault; found out once. Needs a new room afterwards."""
        if job.name not in self._known:
            self.begin(job)
            faults = [FailingDisk(self.room)] if is_loaded() else []
            ended = self._ended_whole(job.arguments, self.room, faults)
            calls = self._import(self.place / "modules.json", ended)
            result = in_child(lambda: job.result(self.room), self.place)
            self._known[job.name] = Undisturbed(result, names(self.room), ended.seconds, calls)
        return self._known[job.name]

    def torn(self, within: str = "") -> list[str]:
        """Problems of the files in the room, or in this folder of it, at a moment at which nothing runs."""
        try:
            in_child(lambda: refuse_torn(self.room / within), self.place)
        except RuntimeError as error:
            return [_plain(f"not whole: {error}")]
        return []

    def kept(self, job: Job) -> list[str]:
        """Keep what is in the room as what the job leaves undisturbed."""
        try:
            result = in_child(lambda: job.result(self.room), self.place)
        except RuntimeError as error:
            return [_plain(f"no result: {error}")]
        self._known[job.name] = Undisturbed(result, names(self.room), 0.0, {})
        return []

    def finish(self, job: Job) -> list[str]:
        """Let the job come to its end; what is then not as in an undisturbed one."""
        ended = self.start(job).end()
        problems = judged(ended)
        if ended.code:
            problems.append(_plain(f"the next call ends with {ended.code}: {_last(ended.said)}"))
        return problems or self.compared(job)

    def compared(self, job: Job) -> list[str]:
        """What is not as in an undisturbed room, now that the job has come to its end."""
        wanted = self.undisturbed_known(job)
        try:
            result = in_child(lambda: job.result(self.room), self.place)
        except RuntimeError as error:
            return [_plain(f"no result: {error}")]
        names_of = wanted.result.keys() | result.keys()
        other = sorted(name for name in names_of if wanted.result.get(name) != result.get(name))
        problems = [f"another result: {', '.join(other[:4])}"] if other else []
        stray = [name for name in names(self.room) if name not in wanted.names]
        missing = [name for name in wanted.names if name not in names(self.room)]
        left = sorted(path.name for path in self.temporary.iterdir())
        problems += [_plain(f"stray: {', '.join(stray[:3])}")] if stray else []
        problems += [_plain(f"missing: {', '.join(missing[:3])}")] if missing else []
        return problems + ([_plain(f"left in TMPDIR: {', '.join(left[:3])}")] if left else [])

    def undisturbed_known(self, job: Job) -> Undisturbed:
        """What is known of the job, without touching its room."""
        return self._known[job.name]

    def tally(self, fault: str) -> Tally:
        """The count of a kind of fault."""
        return self.tallies.setdefault(fault, Tally())

    def take(self) -> dict[str, Tally]:
        """The counts since the last call."""
        taken, self.tallies = self.tallies, {}
        return taken


def judged(ended: Ended, sent: Sequence[int] = ()) -> list[str]:
    """What a process did that none may do, whatever happened to it; `sent` are the signals that it was sent."""
    problems = ["hangs"] if ended.hung else []
    stopped = {code for number in sent for code in (-number, 128 + number)}
    if ended.code < 0 and ended.code not in stopped and not ended.hung:
        problems.append(f"ended by {signal.Signals(-ended.code).name}")
    if _TRACEBACK in ended.said:
        problems.append(_plain(f"traceback: {_last(ended.said)}"))
    elif ended.code >= 0 and ended.code not in OURS | stopped:
        problems.append(_plain(f"exit code {ended.code}: {_last(ended.said)}"))
    elif ended.code == 2 and "error: " not in ended.said:
        problems.append(_plain(f"no message: {_last(ended.said)}"))
    return problems + [_plain(f"orphan: {words}") for words in ended.orphans]


def _last(said: str) -> str:
    return (said.strip().splitlines() or ["nothing said"])[-1].strip()[:160]


def _plain(text: str) -> str:
    """Without paths and numbers, so that the same problem is counted as the same."""
    return _VOLATILE.sub(lambda found: "" if found[0].startswith("/") else "N", text).replace("|", "/")
