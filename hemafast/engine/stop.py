"""Stop anywhere: a signal sets a flag, and the loop saves at its next step. A second signal interrupts at once."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C, the signal of schedulers and containers, and the one that Slurm can send before the time limit."""

_ONE_PRESS = 1.0  # seconds in which signals count as one: torchrun repeats what the terminal has sent already


def exit_code(number: int) -> int:
    """The exit code of a process that signal `number` stopped, by the convention of shells: 130, 143, 138."""
    return 128 + number


class SecondSignal(KeyboardInterrupt):
    """The user does not want to wait for the next step. The last checkpoint stays valid."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


class StopFlag:
    """Handlers for SIGNALS inside a `with` block; `number` is the first signal that came, or 0."""

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.number:
            self.number, self._since = number, now
        if now - self._since < _ONE_PRESS:
            return
        # A new file replaces the old one only when it is complete, so nothing is lost.
        raise SecondSignal(number)
