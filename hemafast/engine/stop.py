"""Stop anywhere: a signal sets a flag, and the loop saves at its next step. A second signal interrupts at once."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGXCPU)
"""Ctrl-C; the signal of schedulers and containers; those that Slurm, LSF and Grid Engine can send before a time limit;
a terminal that is closed or lost; and the end of the CPU seconds that a process may use."""

_ONE_PRESS = 1.0  # seconds in which signals count as one: torchrun repeats what the terminal has sent already


def exit_code(number: int) -> int:
    """The exit code of a process that signal `number` stopped, by the convention of shells: 130 for Ctrl-C."""
    return 128 + number


class SecondSignal(KeyboardInterrupt):
    """The user does not want to wait for the next step. The last checkpoint stays valid."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = exit_code(number)


class StopFlag:
    """Handlers for SIGNALS inside a `with` block; `number` is the first signal that came, or 0.

    Signals that the process ignores stay ignored, as SIGHUP does under nohup.
    """

    def __init__(self) -> None:
        self.number = 0
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopFlag:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in heard}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP:
            _leave_terminal()
        if not self.number:
            self.number, self._since = number, now
        if now - self._since < _ONE_PRESS:
            return
        # A new file replaces the old one only when it is complete, so nothing is lost.
        raise SecondSignal(number)


def _leave_terminal() -> None:
    """Write to nowhere instead of to a terminal that is gone, where each write is an error. Files and pipes stay."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(stream).st_mode):
            os.dup2(nowhere, stream)
    os.close(nowhere)
