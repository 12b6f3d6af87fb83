"""Processes that measure stations, so that allocator, threads and caches of one side never touch the other's."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import psutil

from hemafast.errors import HemafastError

_DRAINED = 6  # batches that may lie ready when a round begins: more than any side reads ahead on few threads
_UNCOUNTED = 1  # batches before a round: memory that lay idle meanwhile may have gone back to the system, or its caches
_QUIET_SECONDS = 0.05  # a few ticks of the kernel's clock
_LONGEST_WAIT = 600.0
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_FORGET_PEAK = "5"  # what the kernel takes for: the peak of the resident memory is that of now


class Done(NamedTuple):
    """What a station has finished: one batch, on every device."""

    images: int
    """Or what else the station counts: products, copies, checkpoints."""
    waited: float = 0.0
    """Seconds in which the step had no batch to work on."""
    seconds: float | None = None
    """Of the wall clock, where not all of the time is the station's."""
    cpu_seconds: float | None = None
    """Of all processors, likewise."""


Station = Iterator[Done]
"""An endless stream of finished batches."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: whole batches over some seconds."""

    images: int
    seconds: float
    """Of the wall clock."""
    cpu_seconds: float
    """Of all processors together."""
    steps: int = 1
    """Batches."""
    waited: float = 0.0
    """Seconds in which the step had no batch to work on."""
    page_faults: int = 0
    """Pages that the kernel had to map or fetch for this process."""
    peak_memory: int = 0
    """Bytes: most that the process held at once, all its stations together; 0 if the kernel does not tell."""
    peak_device_memory: int = 0
    """Bytes on the GPU, likewise; 0 without one."""


class Worker:
    """Stations in a process of their own, made there by `make(of)` when first asked for; idle but for calls of `run`.

    `reads_ahead` names those of which batches may lie ready when a round begins, which are not to be counted.
    """

    def __init__(
        self, makes: Mapping[str, Callable[[Any], Station]], of: Any, *, reads_ahead: frozenset[str] = frozenset()
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        # Not a daemon: the torchvision station has worker processes of its own.
        self._process = context.Process(target=_serve, args=(theirs, dict(makes), of, reads_ahead))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.dismiss()
        if error is not None:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
        self._process.join()

    def dismiss(self) -> None:
        """Let the process end, without waiting for it: of several, they end together."""
        self._connection.close()

    def run(self, station: str, seconds: float) -> Round:
        """Work for at least `seconds` in whole batches, and measure. Raises HemafastError if the station fails."""
        try:
            self._connection.send((station, seconds))
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = "its process died"
        if isinstance(answer, str):
            raise HemafastError(f"The station {station!r} failed: {answer}.", "Run it again with -v.")
        assert isinstance(answer, Round)
        return answer


def _serve(
    connection: Connection, makes: dict[str, Callable[[Any], Station]], of: Any, reads_ahead: frozenset[str]
) -> None:
    """Answer each name and number of seconds with a measurement, until the other side hangs up or a station fails."""
    stations: dict[str, Station] = {}
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            name, seconds = connection.recv()
            try:
                if name not in stations:
                    stations[name] = makes[name](of)
                connection.send(_measure(stations[name], seconds, drain=name in reads_ahead))
            except Exception as error:  # told to the process that prints
                connection.send(f"{type(error).__name__}: {error}")
                break
    stations.clear()  # each tidies up after itself
    os._exit(0)  # what Python would do beyond that takes seconds, once torch and DALI are loaded


def _measure(station: Station, seconds: float, *, drain: bool) -> Round:
    """Measure whole batches over at least `seconds`."""
    for _ in range(_DRAINED if drain else _UNCOUNTED):
        next(station)
    _forget_peaks()
    finished: list[Done] = []
    counted, faults, cpu, started = 0.0, _page_faults(), _cpu_seconds(), time.perf_counter()
    while not finished or counted < seconds:
        finished.append(next(station))
        part = finished[-1].seconds
        counted = time.perf_counter() - started if part is None else counted + part
    cpu, faults = _cpu_seconds() - cpu, _page_faults() - faults
    parts = [done.cpu_seconds for done in finished if done.cpu_seconds is not None]
    measured = Round(
        images=sum(done.images for done in finished),
        seconds=counted,
        cpu_seconds=sum(parts) if parts else cpu,
        steps=len(finished),
        waited=sum(done.waited for done in finished),
        page_faults=faults,
        peak_memory=_peak_memory(),
        peak_device_memory=_peak_device_memory(),
    )
    _settle()
    return measured


def _cpu_seconds() -> float:
    """Processor time of this process and its living children, user and system."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(part.user + part.system for part in times))


def _page_faults() -> int:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_minflt + used.ru_majflt


def _forget_peaks() -> None:
    with suppress(OSError):  # no Linux, or no right to: the peak is then that of all rounds so far
        _CLEAR_REFS.write_text(_FORGET_PEAK, encoding="ascii")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _peak_device_memory() -> int:
    cuda = _cuda()
    return int(cuda.max_memory_allocated()) if cuda else 0


def _cuda() -> Any:
    """torch.cuda where a GPU is in use; stations without torch are not made to import it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _settle() -> None:
    """Wait until reading ahead is over, so that the next station's round has the machine to itself."""
    deadline = time.perf_counter() + _LONGEST_WAIT
    before = _cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = _cpu_seconds()
        if now - before < _QUIET_SECONDS / 4:
            return
        before = now
