"""How much of the processor this process gets, of what it wants."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TASKS = Path("/proc/self/task")
"""A folder for each thread of this process; its file `schedstat` begins with nanoseconds run and nanoseconds waited."""


@dataclass(frozen=True, slots=True)
class Load:
    """Processor time of this process, summed over its threads that live."""

    ran: int = 0
    """Nanoseconds on a core."""
    waited: int = 0
    """Nanoseconds ready to run while others had the cores, or while a quota held the process back."""

    @classmethod
    def now(cls, tasks: Path = TASKS) -> Load:
        """Read it from the scheduler (proc(5)); nothing where the kernel does not tell."""
        ran = waited = 0
        for file in tasks.glob("*/schedstat"):
            with suppress(OSError, ValueError):  # a thread may end meanwhile
                times = file.read_text(encoding="ascii").split()
                ran, waited = ran + int(times[0]), waited + int(times[1])
        return cls(ran, waited)

    def wanted_since(self, before: Load) -> float:
        """Seconds of processor time that this process wanted since `before`, whether it got them or not."""
        return sum(self._since(before)) / 1e9

    def others_since(self, before: Load) -> float:
        """The share, 0 to 1, of the wanted time since `before` that this process waited for a core."""
        ran, waited = self._since(before)
        return waited / (ran + waited) if ran + waited else 0.0

    def _since(self, before: Load) -> tuple[int, int]:
        """Nanoseconds run and waited; threads that have ended take theirs with them."""
        return max(self.ran - before.ran, 0), max(self.waited - before.waited, 0)
