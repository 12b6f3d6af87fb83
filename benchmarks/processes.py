"""What processes cost: their time, and the peak of their memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

_LOOK = 0.05  # s


def cost_of(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds and peaks of the memory of `python ARGUMENTS`. Ends this process if it fails.

    The resident memory counts pages of mapped files too, which the kernel takes back when it needs them. `own` does
    not: it is what grows if data is kept, looked at every `_LOOK` seconds.
    """
    started, peak, own = time.perf_counter(), 0, 0
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while True:
        peak, own = max(peak, _kib(process.pid, "VmHWM")), max(own, _kib(process.pid, "RssAnon"))
        finished, status, usage = os.wait4(process.pid, os.WNOHANG)
        if finished:
            break
        time.sleep(_LOOK)
    if status != 0:
        sys.exit(f"python {' '.join(arguments)} failed.")
    return {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": peak / 1024,
        "own_memory_mb": own / 1024,
    }


def cpu_seconds() -> float:
    """CPU seconds of this process and of its children so far."""
    me = psutil.Process()
    times = [process.cpu_times() for process in (me, *me.children(recursive=True))]
    return float(sum(part.user + part.system for part in times))


def _kib(process: int, name: str) -> int:
    """A size that the kernel keeps; os.wait4's peak would count what was there before the command began."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:")), 0)
