"""How much of the processor this process gets, of what it wants."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TASKS = Path("/proc/self/task")
"""A folder for each thread of this process; its file `schedstat` begins with nanoseconds run and nanoseconds waited."""


@dataclass(frozen=True, slots=True)
class Load:
    """Processor time of this process, by thread."""

    threads: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each thread that lives: nanoseconds on a core, and nanoseconds ready to run while others had the cores, or
    while a quota held the process back."""

    @classmethod
    def now(cls, tasks: Path = TASKS) -> Load:
        """Read it from the scheduler (proc(5)); nothing where the kernel does not tell."""
        threads = {}
        with suppress(OSError):  # no file can be opened
            for file in tasks.glob("*/schedstat"):
                with suppress(OSError, ValueError):  # a thread may end meanwhile
                    ran, waited = map(int, file.read_text(encoding="ascii").split()[:2])
                    threads[file.parent.name] = ran, waited
        return cls(threads)

    def wanted_since(self, before: Load) -> float:
        """Seconds of processor time that this process wanted since `before`, whether it got them or not."""
        return sum(self._since(before)) / 1e9

    def others_since(self, before: Load) -> float:
        """The share, 0 to 1, of the wanted time since `before` that this process waited for a core."""
        ran, waited = self._since(before)
        return waited / (ran + waited) if ran + waited else 0.0

    def _since(self, before: Load) -> tuple[int, int]:
        """Nanoseconds run and waited by the threads that live now."""
        ran = waited = 0
        for thread, times in self.threads.items():
            ran_before, waited_before = before.threads.get(thread, (0, 0))
            ran, waited = ran + max(times[0] - ran_before, 0), waited + max(times[1] - waited_before, 0)
        return ran, waited
