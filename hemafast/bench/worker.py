"""One process a station, so that allocator, threads and caches of one side never touch the other's."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

import psutil

from hemafast.bench.stations import Station
from hemafast.errors import HemafastError

_DRAINED = 6  # batches that may lie ready when a round begins: more than any side reads ahead on few threads
_QUIET_SECONDS = 0.1
_LONGEST_WAIT = 600.0


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement: images finished, seconds of the wall clock, seconds of all processors together."""

    images: int
    seconds: float
    cpu_seconds: float


class Worker:
    """A station in its own process, made there by `make(of)`; idle but for the calls of `run`.

    `reads_ahead` says that batches may lie ready when a round begins, which are not to be counted.
    """

    def __init__(self, name: str, make: Callable[[Any], Station], of: Any, *, reads_ahead: bool = False) -> None:
        context = multiprocessing.get_context("spawn")
        self._station = name
        self._connection, theirs = context.Pipe()
        # Not a daemon: the torchvision station has worker processes of its own.
        self._process = context.Process(target=_serve, args=(theirs, make, of, reads_ahead))
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._connection.close()
        if error is not None:
            for child in psutil.Process(self._process.pid).children(recursive=True):
                child.kill()
            self._process.kill()
        self._process.join()

    def run(self, seconds: float) -> Round:
        """Work for at least `seconds` in whole batches, and measure. Raises HemafastError if the station fails."""
        try:
            self._connection.send(seconds)
            answer = self._connection.recv()
        except (EOFError, OSError):
            answer = "its process died"
        if isinstance(answer, str):
            raise HemafastError(f"The station {self._station!r} failed: {answer}.", "Run it again with -v.")
        return Round(*answer)


def _serve(connection: Connection, make: Callable[[Any], Station], of: Any, reads_ahead: bool) -> None:
    """Answer each number of seconds with a measurement, until the other side hangs up."""
    station: Station | None = None
    while True:
        try:
            seconds = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            station = station or make(of)
            connection.send(_measure(station, seconds, drain=reads_ahead))
        except KeyboardInterrupt:
            return
        except Exception as error:  # told to the process that prints
            connection.send(f"{type(error).__name__}: {error}")
            return


def _measure(station: Station, seconds: float, *, drain: bool) -> tuple[int, float, float]:
    """Images, wall seconds and processor seconds of whole batches over at least `seconds`."""
    for _ in range(_DRAINED if drain else 0):
        next(station)
    images, cpu, started = 0, _cpu_seconds(), time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds or not images:
        images += next(station)
    measured = images, elapsed, _cpu_seconds() - cpu
    _settle()
    return measured


def _cpu_seconds() -> float:
    """Processor time of this process and its living children, user and system."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(part.user + part.system for part in times))


def _settle() -> None:
    """Wait until reading ahead is over, so that the next station's round has the machine to itself."""
    deadline = time.perf_counter() + _LONGEST_WAIT
    before = _cpu_seconds()
    while time.perf_counter() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = _cpu_seconds()
        if now - before < _QUIET_SECONDS / 5:
            return
        before = now
