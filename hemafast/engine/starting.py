"""The seconds from the command to the first step, by part."""

from __future__ import annotations

import time
from contextlib import ExitStack

from hemafast.collector import resting


class Starting(ExitStack):
    """Takes the time of each part of the start, during which the garbage collector rests.

    It began at `began`, a moment of time.monotonic, and lasts until it is closed.
    """

    def __init__(self, began: float) -> None:
        super().__init__()
        self.began = self._last = began
        self._parts: dict[str, float] = {}
        self.enter_context(resting())

    def done(self, part: str) -> None:
        """Count the seconds since the part before to `part`."""
        now = time.monotonic()
        self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    @property
    def seconds(self) -> float:
        """From the beginning to the end of the last part."""
        return self._last - self.began

    def told(self) -> str:
        """All parts, as "imports 3.1, data 0.2"."""
        return ", ".join(f"{part} {seconds:.1f}" for part, seconds in self._parts.items())
