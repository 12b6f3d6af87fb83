"""Batches of bounded size, threads that share a batch, and a thread that works ahead of its consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")

_AHEAD = 2  # items that wait at most between two stations
_BATCH_BYTES = 64 * 2**20  # encoded; a batch of larger images is shorter


def batches(items: Iterable[Item], most: int, bytes_of: Callable[[Item], int]) -> Iterator[list[Item]]:
    """The same items in lists of `most`, or fewer if they are large."""
    batch: list[Item] = []
    size = 0
    for item in items:
        batch.append(item)
        size += bytes_of(item)
        if len(batch) == most or size >= _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Pool(ThreadPoolExecutor):
    """Threads that share a batch evenly: one task per thread, for a task per image would cost more than some work."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._workers = workers

    def __exit__(self, *_: object) -> None:
        """Wait for running tasks. Drop waiting ones: only an interruption leaves any."""
        self.shutdown(cancel_futures=True)

    def each(self, work: Callable[[Item], None], items: Sequence[Item]) -> None:
        """Do `work` on every item. Raises what it raises."""

        def work_on(share: Sequence[Item]) -> None:
            for item in share:
                work(item)

        list(self.map(work_on, [items[start :: self._workers] for start in range(self._workers)]))


def made_ahead(items: Iterator[Item], station: Executor) -> Iterator[Item]:
    """The same items. `station`, which has one thread, starts at once and makes a few before they are asked for."""
    end = object()
    waiting = deque(station.submit(next, items, end) for _ in range(_AHEAD))

    def take() -> Iterator[Item]:
        while (item := waiting.popleft().result()) is not end:
            waiting.append(station.submit(next, items, end))
            yield item  # type: ignore[misc]

    return take()
