"""Threads of torch that wait for each other give up their cores sooner while other programs want them.

GNU OpenMP reads how long a waiting thread keeps its core once, when it is loaded (`hemafast.waiting`). But where it has
more threads than cores, it lets them sleep nearly at once (libgomp, config/linux/wait.h). So a few threads more, which
only sleep, are a switch that works during a run. The number of threads that compute, and so every sum, stays.
"""

from __future__ import annotations

import atexit
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from math import ceil

from hemafast.engine.load import Load
from hemafast.waiting import set_by_user

logger = logging.getLogger("hemafast")

LOOK = 1.0
"""Seconds between two looks at the load."""

CROWDED, QUIET = 0.2, 0.15
"""Shares of the wanted processor time spent waiting for a core (`Load.others_since`): above, others compete; below,
they do not. A training alone on two cores waits for 0.08 to 0.12, because its own threads meet; beside one busy
process for 0.4 and more."""

_SURE = 5  # quiet looks in a row until waiting threads may spin again
_IDLE = 0.25  # of a core: whoever wants less has no threads that wait for each other
_GRAIN = 1 << 15  # elements that torch gives a thread at least
_MOST_TEAMS = 16  # of spare threads


def teams_for(threads: int, cores: int) -> int:
    """Teams beside one of `threads` (2 or more), each with all but one of them new, that make more than `cores`.

    None where the threads are more than the cores already.
    """
    return max(0, ceil((cores + 1 - threads) / (threads - 1)))


class SpareThreads:
    """Enough sleeping threads beside those of torch that OpenMP has more than cores; all end with `close`.

    Raises RuntimeError, and leaves none behind, where no more threads can be started.
    """

    def __init__(self, threads: int, cores: int) -> None:
        self._elements, self._ended = threads * _GRAIN, threading.Event()
        self._started: list[threading.Thread] = []
        teams = teams_for(threads, cores)
        with ExitStack() as failing:
            failing.callback(self.close)
            # First as many as all teams have: OpenMP ends the process where it cannot start one.
            self._start(teams * threads, self._ended.wait)
            self.close()
            self._ended.clear()
            self._start(teams, self._hold)
            failing.pop_all()

    def close(self) -> None:
        """End them, and wait until they have."""
        self._ended.set()
        while self._started:
            self._started.pop().join()

    def _start(self, number: int, work: Callable[[], object]) -> None:
        for _ in range(number):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            self._started.append(thread)

    def _hold(self) -> None:
        """The first parallel operation of a thread gives it a team of its own, which lives as long as the thread."""
        import torch

        torch.zeros(self._elements, dtype=torch.int8).add_(1)
        self._ended.wait()


class Watch:
    """Looks at the load again and again, and holds spare threads for as long as other programs want the cores."""

    def __init__(self, spare: Callable[[], SpareThreads], load: Callable[[], Load] = Load.now) -> None:
        self._spare, self._load, self._before, self._quiet = spare, load, load(), 0
        self._held = ExitStack()
        self.yields = False
        """Whether waiting threads sleep nearly at once now."""

    def look(self) -> None:
        """Judge the time since the last look."""
        load, before = self._load(), self._before
        self._before = load
        if load.wanted_since(before) < _IDLE * LOOK:
            return
        share = load.others_since(before)
        self._quiet = self._quiet + 1 if share < QUIET else 0
        if share > CROWDED and not self.yields:
            self._held.callback(self._spare().close)
            self.yields = True
            logger.debug(
                "others have the cores for %.0f %% of the wanted time: waiting threads sleep at once", 100 * share
            )
        elif self.yields and self._quiet >= _SURE:
            self._held.close()
            self.yields = False
            logger.debug("the cores are free again: waiting threads keep them for a moment")

    def run(self, ended: threading.Event) -> None:
        """Look again and again until the process has `ended`, or has no room for more threads."""
        with self._held, suppress(RuntimeError):
            while not ended.wait(LOOK):
                self.look()


_watches: dict[int, Watch] = {}
"""By process: a forked one has no thread of its parent."""


def yield_to_others(environment: Mapping[str, str] = os.environ) -> bool:
    """Watch the load of this process from now on, in one thread, unless the user has set how threads wait.

    Returns whether it is watched: with one thread for torch, none waits for another; threads that are more than the
    cores sleep at once anyway; few threads on many cores would need too many beside them; and other libraries than GNU
    OpenMP have no such switch.
    """
    import torch

    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    if threads == 1 or set_by_user(environment) or not _threads_of_gnu():
        return False
    if not 0 < teams_for(threads, cores) <= _MOST_TEAMS:
        return False
    watch = Watch(lambda: SpareThreads(threads, cores))
    if _watches.setdefault(os.getpid(), watch) is watch:
        ended = threading.Event()
        watching = threading.Thread(target=watch.run, args=(ended,), name="watch the load", daemon=True)
        watching.start()
        atexit.register(_end, ended, watching)
    return True


def _threads_of_gnu() -> bool:
    """Whether the threads of torch are those of GNU OpenMP: not of Intel's or LLVM's, and not a pool of torch."""
    try:
        library = ctypes.CDLL("libtorch_cpu.so")  # is loaded already; the search includes what it is linked with
    except OSError:
        return False
    return hasattr(library, "GOMP_parallel") and not hasattr(library, "kmp_set_blocktime")  # they imitate the former


def _end(ended: threading.Event, watching: threading.Thread) -> None:
    """Let the threads end before the interpreter does, which aborts the process where one is within torch."""
    if watching.is_alive():  # not in a forked process, to which it may have left its lock
        ended.set()
        watching.join()
