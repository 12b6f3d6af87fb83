"""What a process costs, measured from outside: its time and the peak of its memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

_LOOK = 0.05  # s


def cost_of(arguments: Sequence[str]) -> dict[str, float]:
    """Seconds, CPU seconds and the peak of the resident memory of `python ARGUMENTS`. Ends this process if it fails."""
    started, peak = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL)
    while True:
        peak = max(peak, _peak_kib(process.pid))
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
    }


def _peak_kib(process: int) -> int:
    """The high-water mark that the kernel keeps; os.wait4's would count what was there before the command began."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
