"""Measure stations in separate processes, so that allocators, threads and caches of two sides never mix."""

from __future__ import annotations

import gc
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
from typing import Annotated, Any, NamedTuple

import psutil
from annotated_types import Ge, Gt

from hemafast.errors import HemafastError

_DRAINED = 6  # batches to skip if they may have been prepared ahead; no side prepares more on few threads
_UNCOUNTED = 1  # batches to skip otherwise: idle memory may have left the caches or gone back to the system
_QUIET_SECONDS = 0.05  # a few ticks of the kernel clock
_LONGEST_WAIT = 600.0
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_FORGET_PEAK = "5"  # tells the kernel to reset the peak of the resident memory


class Done(NamedTuple):
    """One batch that a station has finished."""

    images: int
    """Or what else the station counts: products, copies, checkpoints."""
    waited: float = 0.0
    """Seconds in which the step waited for a batch."""
    seconds: float | None = None
    """Wall time of the station, if it is not all of the time."""
    cpu_seconds: float | None = None
    """CPU time of the station, likewise."""


Station = Iterator[Done]
"""An endless stream of finished batches."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: whole batches over some seconds."""

    images: Annotated[int, Ge(1)]
    seconds: Annotated[float, Gt(0)]
    """Wall time."""
    cpu_seconds: Annotated[float, Ge(0)]
    """CPU time of all cores."""
    steps: Annotated[int, Ge(1)]
    """Batches."""
    waited: Annotated[float, Ge(0)]
    """Seconds in which the step waited for a batch."""
    page_faults: Annotated[int, Ge(0)]
    """Pages that the kernel mapped or fetched for this process."""
    peak_memory: Annotated[int, Ge(0)]
    """Bytes in the memory of the process, with all its stations; 0 if unknown."""
    peak_device_memory: Annotated[int, Ge(0)]
    """Bytes on the GPU; 0 without one."""


class Worker:
    """A process with stations, each made there by `make(of)` before its first round. It works only during `run`.

    `reads_ahead` names the stations that prepare batches between rounds; these batches are not counted.
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
        """Let the process end without waiting for it, so that several end together."""
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
    """Answer each (name, seconds) with a measurement, until the other side closes or a station fails."""
    stations: dict[str, Station] = {}
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            name, seconds = connection.recv()
            try:
                if name not in stations:
                    stations[name] = makes[name](of)
                connection.send(_measure(stations[name], seconds, drain=name in reads_ahead))
            except Exception as error:  # the other process reports it
                connection.send(f"{type(error).__name__}: {error}")
                break
    stations.clear()  # each cleans up
    gc.collect()  # also semaphores of torch's loader, about which Python prints a warning otherwise
    os._exit(0)  # a normal exit takes seconds with torch and DALI loaded


def _measure(station: Station, seconds: float, *, drain: bool) -> Round:
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
    cuda = _cuda()
    parts = [done.cpu_seconds for done in finished if done.cpu_seconds is not None]
    measured = Round(
        images=sum(done.images for done in finished),
        seconds=counted,
        cpu_seconds=sum(parts) if parts else cpu,
        steps=len(finished),
        waited=sum(done.waited for done in finished),
        page_faults=faults,
        peak_memory=_peak_memory(),
        peak_device_memory=cuda.max_memory_allocated() if cuda else 0,
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
    with suppress(OSError):  # not Linux, or not permitted: the peak is then that of all rounds so far
        _CLEAR_REFS.write_text(_FORGET_PEAK, encoding="ascii")
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    try:
        lines = _STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def _cuda() -> Any:
    """torch.cuda if a GPU is in use. Does not import torch for stations without it."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _settle() -> None:
    """Wait until the stations have finished preparing batches, so that the next round has the machine to itself."""
    deadline = time.perf_counter() + _LONGEST_WAIT
    before = _cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = _cpu_seconds()
        if now - before < _QUIET_SECONDS / 4:
            return
        before = now
