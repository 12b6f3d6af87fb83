"""Processes of hemafast that cost no import: forked from this one, which has imported everything and has one thread."""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

HANGS = 120.0
"""Seconds after which a process counts as hanging; none of these commands takes a tenth of that."""

_PARENT_DEATH_SIGNAL, _SUBREAPER = 1, 36  # PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER
_PATIENCE = 2.0  # seconds in which helpers of a killed process may notice

_ours: set[int] = set()  # processes that were started here and have not ended


class Arms(Protocol):
    """A fault that is switched on inside the process that it hits."""

    def arm(self) -> None:
        """Switch it on."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Exit code; negative for a signal."""
    said: str
    """Its standard error and output."""
    seconds: float
    orphans: tuple[str, ...] = ()
    """Command lines of helper processes that outlived it."""
    hung: bool = False


@dataclass
class Started:
    """A process that runs."""

    pid: int
    log: Path
    since: float = field(default_factory=time.monotonic)
    _status: int | None = None

    def alive(self) -> bool:
        """Whether it has not ended yet."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = status
                _ours.discard(pid)
        return self._status is None

    def send(self, number: int) -> bool:
        """Send a signal; False if it had ended before."""
        if not self.alive():
            return False
        os.kill(self.pid, number)
        return True

    def wait(self, seconds: float = HANGS) -> bool:
        """Wait until it ends, at most so long; whether it has ended."""
        until = time.monotonic() + seconds
        while self.alive() and time.monotonic() < until:
            time.sleep(0.005)
        return not self.alive()

    def end(self, seconds: float = HANGS) -> Ended:
        """Wait for its end; kill it if it hangs."""
        hung = not self.wait(seconds)
        if hung:
            self.send(signal.SIGKILL)
            self.wait()
        code = os.waitstatus_to_exitcode(self._status or 0)
        said = self.log.read_text(encoding="utf-8", errors="replace")
        return Ended(code, said, time.monotonic() - self.since, _orphans(), hung)


def adopt_orphans() -> None:
    """Let helpers that outlive their process become children of this one, where `Ended.orphans` finds them."""
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def end_with_parent(number: int) -> None:
    """Let this process get that signal when the one that started it is gone."""
    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, int(number), 0, 0, 0)


def end_all() -> None:
    """Kill all that was started here and runs."""
    for pid in tuple(_ours):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def threads() -> int:
    """Threads of this process: only a process with one can be forked safely."""
    return len(list(Path("/proc/self/task").iterdir()))


def start(
    main: Callable[[], object],
    arguments: Sequence[str],
    *,
    cwd: Path,
    log: Path,
    environment: Mapping[str, str] = {},
    faults: Sequence[Arms] = (),
    at_end: Callable[[], object] = lambda: None,
) -> Started:
    """Run `main` in a new process as the command line with these arguments.

    Args:
        main: as `hemafast.cli.main`; it may exit.
        arguments: sys.argv without its first word.
        cwd: its working folder.
        log: a file for what it writes to standard output and error.
        environment: variables on top of those of this process.
        faults: what goes wrong inside the process.
        at_end: called in the process when the command is over.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        _ours.add(pid)
        return Started(pid, log)
    code = 70
    try:
        code = _run(main, arguments, cwd, log, environment, faults, at_end)
    finally:
        os._exit(code)


def _run(
    main: Callable[[], object],
    arguments: Sequence[str],
    cwd: Path,
    log: Path,
    environment: Mapping[str, str],
    faults: Sequence[Arms],
    at_end: Callable[[], object],
) -> int:
    """In the new process: become the command, and leave as an interpreter does."""
    os.setsid()
    end_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.chdir(cwd)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for stream, file in ((0, nothing), (1, out), (2, out)):
        os.dup2(file, stream)
    os.environ.update(environment)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.argv = ["hemafast", *arguments]
    for fault in faults:
        fault.arm()
    try:
        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    at_end()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def in_child(work: Callable[[], Any], room: Path) -> Any:
    """What `work` returns, as JSON, from a process of its own: it may crash, and leaves no thread behind.

    Raises RuntimeError if it does not return.
    """
    answer, log = room / "answer.json", room / "answer.log"
    answer.unlink(missing_ok=True)

    def keep() -> None:
        answer.write_text(json.dumps(work()), encoding="utf-8")
        os._exit(0)  # nothing in it needs to be tidied up

    ended = start(keep, (), cwd=room, log=log).end()
    if ended.code or ended.hung:
        last = ended.said.strip().splitlines()[-1:] or ["nothing"]
        raise RuntimeError(f"exit code {ended.code}: {last[0]}")
    return json.loads(answer.read_text(encoding="utf-8"))


def _orphans() -> tuple[str, ...]:
    """Children of this process that it did not start: those that a process left behind. They are ended here."""
    until = time.monotonic() + _PATIENCE
    while (left := _children()) and time.monotonic() < until:
        time.sleep(0.05)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return tuple(left.values())


def _children() -> dict[int, str]:
    """Command lines of living children that this process did not start, by process id; dead ones are reaped."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in _ours:
            continue
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        except OSError:
            continue
        if int(fields[1]) != os.getpid():
            continue
        if fields[0] == "Z":
            os.waitpid(int(entry.name), os.WNOHANG)
        else:
            found[int(entry.name)] = words[:120]
    return found
