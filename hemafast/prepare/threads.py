"""Threads that share a batch, and a thread that works ahead of whoever takes what it makes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_AHEAD = 2  # items that wait at most between two stations


class Pool(ThreadPoolExecutor):
    """Threads that share a batch evenly: one task a thread, for a task an image costs more than some of the work."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._workers = workers

    def each(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do `work` on every item. Raises what it raises."""

        def work_on(share: Sequence[Item]) -> None:
            for item in share:
                work(item)

        list(self.map(work_on, [items[start :: self._workers] for start in range(self._workers)]))


def made_ahead(items: Iterator[Item], station: Executor) -> Iterator[Item]:
    """The same items, some of them made while the one before them is worked on; the first ones at once.

    `station` has one thread.
    """
    end = object()
    waiting = deque(station.submit(next, items, end) for _ in range(_AHEAD))

    def take() -> Iterator[Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(station.submit(next, items, end))
            yield item  # type: ignore[misc]

    return take()
