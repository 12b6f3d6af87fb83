"""Measure stations in separate processes, so that allocators, threads and caches of two sides never mix."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NamedTuple

import psutil
from annotated_types import Ge, Gt

from hemafast.errors import HemafastError

_DRAINED = 6  # batches to skip if they may have been prepared ahead; no side prepares more on few threads
_UNCOUNTED = 1  # batches to skip otherwise: idle memory may have left the caches or gone back to the system
_RECORDED = 5  # batches to skip on a GPU: a CUDA graph is warmed up by three, captured with the next and then replayed
_AHEAD = 16  # batches that the host may be ahead of a GPU; enough to keep it busy, and few to wait for at the end
_PERCENTILES = (10, 50, 90)
_QUIET_SECONDS = 0.05  # a few ticks of the kernel clock
_LONGEST_WAIT = 600.0
_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_FORGET_PEAK = "5"  # tells the kernel to reset the peak of the resident memory


class Moment:
    """A moment in the work of the device, without waiting for it: a CUDA event on a GPU, the clock elsewhere."""

    def __init__(self) -> None:
        self.at = time.perf_counter()
        self._event: Any = None
        if cuda := _cuda():
            self._event = cuda.Event(enable_timing=True)
            self._event.record()

    def wait(self) -> None:
        """Wait until the device has come to it."""
        if self._event is not None:
            self._event.synchronize()

    def until(self, later: Moment) -> float:
        """Seconds to `later`. On a GPU both must have passed: call it after the device has finished."""
        if self._event is None or later._event is None:
            return later.at - self.at
        return float(self._event.elapsed_time(later._event)) / 1000  # milliseconds


class Span(NamedTuple):
    """A part of the work between two moments."""

    begin: Moment
    end: Moment

    @property
    def seconds(self) -> float:
        """Its length, once the device has finished."""
        return self.begin.until(self.end)


class Done(NamedTuple):
    """One batch that a station has handed to the device. The device may still work on it."""

    images: int
    """Or what else the station counts: products, copies, checkpoints."""
    waited: Span | None = None
    """In which the step waited for a batch."""
    part: Span | None = None
    """The part of the time that counts, if not all of it does."""
    cpu_seconds: float | None = None
    """CPU time of that part."""
    compiled: float = 0.0
    """Seconds of compiling within this batch. Such a batch never counts."""


Station = Iterator[Done]
"""An endless stream of batches."""


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: whole batches over some seconds, until the device has finished the last."""

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
    compile_seconds: Annotated[float, Ge(0)] = 0.0
    """Seconds of compiling before the measurement, in none of the other figures."""
    step_seconds: list[float] = field(default_factory=list)
    """10th, 50th and 90th percentile over the batches, on a GPU by its own clock; empty in older results."""


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
                connection.send(measure(stations[name], seconds, drain=name in reads_ahead))
            except Exception as error:  # the other process reports it
                connection.send(f"{type(error).__name__}: {error}")
                break
    stations.clear()  # each cleans up
    gc.collect()  # also semaphores of torch's loader, about which Python prints a warning otherwise
    os._exit(0)  # a normal exit takes seconds with torch and DALI loaded


def measure(station: Station, seconds: float, *, drain: bool) -> Round:
    """Measure a station of this process in whole batches.

    Args:
        station: batches; it may go on after earlier measurements.
        seconds: least length of the measurement.
        drain: also skip batches that may have been read ahead.

    Returns:
        Its figures from the first steady batch on, until the device has finished the last.
    """
    compiled = _warm_up(station, drain=drain)
    while True:
        round_, late = _count(station, seconds)
        compiled += late
        if round_ is not None:
            return replace(round_, compile_seconds=compiled)


def _warm_up(station: Station, *, drain: bool) -> float:
    """Skip what is not steady yet. Returns the seconds of compiling."""
    begun = [next(station)]  # on a GPU it is known after the first batch that there is one
    least = _DRAINED if drain else _RECORDED if _cuda() else _UNCOUNTED
    while len(begun) < least or begun[-1].compiled:
        begun.append(next(station))
    return sum(done.compiled for done in begun)


def _count(station: Station, seconds: float) -> tuple[Round | None, float]:
    """Measure for `seconds`. If a batch compiles, there is no measurement, but the seconds that compiling took."""
    _forget_peaks()
    _wait_for_device()
    finished: list[Done] = []
    counted, faults, cpu, moments = 0.0, _page_faults(), _cpu_seconds(), [Moment()]
    while not finished or counted < seconds:
        finished.append(next(station))
        moments.append(Moment())
        moments[-min(_AHEAD, len(moments))].wait()
        if finished[-1].compiled:
            return None, finished[-1].compiled
        part = finished[-1].part or Span(moments[-2], moments[-1])
        counted += part.end.at - part.begin.at  # by the host, which may be ahead of the device
    _wait_for_device()
    wall = time.perf_counter() - moments[0].at
    cpu, faults = _cpu_seconds() - cpu, _page_faults() - faults
    found = _round(finished, moments, wall, cpu, faults)
    _settle()
    return found, 0.0


def _round(finished: Sequence[Done], moments: Sequence[Moment], wall: float, cpu: float, faults: int) -> Round:
    """The figures of batches that the device has finished, `moments` around each of them."""
    parts = [done.part.seconds for done in finished if done.part is not None]
    cpu_parts = [done.cpu_seconds for done in finished if done.cpu_seconds is not None]
    cuda = _cuda()
    return Round(
        images=sum(done.images for done in finished),
        seconds=sum(parts) if parts else wall,
        cpu_seconds=sum(cpu_parts) if cpu_parts else cpu,
        steps=len(finished),
        waited=sum(done.waited.seconds for done in finished if done.waited is not None),
        page_faults=faults,
        peak_memory=_peak_memory(),
        peak_device_memory=cuda.max_memory_allocated() if cuda else 0,
        step_seconds=_percentiles(parts or [begin.until(end) for begin, end in pairwise(moments)]),
    )


def _percentiles(values: Sequence[float]) -> list[float]:
    import numpy as np

    return [float(one) for one in np.percentile(values, _PERCENTILES)]


def _wait_for_device() -> None:
    if cuda := _cuda():
        cuda.synchronize()


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
