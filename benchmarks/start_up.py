"""Seconds from the command to the first step of training, by part, with warm and with cold caches.

    python benchmarks/start_up.py --data PREPARED --json benchmarks/results/start_up.json    # 5 minutes

Each run is `hemafast train` in a process of its own, stopped after its first step, which the log tells with its parts;
CPU seconds are those of the process until then. Warm: an uncounted run came before. Cold disk: the kernel's caches of
files are dropped before each run (as root, else this column is missing), as after a restart of the machine. Installed
anew: without the kernels that numba has compiled. Answers of trials stay. Run it on a quiet machine.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from output import JsonFile, machine_line, ranged, table, write_json

from hemafast.bench.result import spread
from hemafast.engine.machine import machine_facts

FIRST_STEP = re.compile(r"first step (?P<all>[\d.]+) s after the start: (?P<parts>.*)")
PART = re.compile(r"(?P<name>[a-z ]+) (?P<seconds>[\d.]+)")
_CACHES = Path("/proc/sys/vm/drop_caches")


def parts_of(line: str) -> dict[str, float] | None:
    """Seconds by part and `in all`, from a line of the log; None if it tells something else."""
    found = FIRST_STEP.search(line)
    if found is None:
        return None
    parts = {part["name"].strip(): float(part["seconds"]) for part in PART.finditer(found["parts"])}
    return parts | {"in all": float(found["all"])}


def start(data: Path, preset: str, *, kernels: bool = True) -> dict[str, float]:
    """Start a training, with compiled `kernels` or without, and stop it after its first step.

    Ends the process if there was none.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "hemafast", "train", "--preset", preset, "--data", str(data)]
        command += ["--output", f"{folder}/runs"]
        changed = {"COLUMNS": "400"}  # so that a line of the log is one line
        changed |= {} if kernels else {"NUMBA_CACHE_DIR": f"{folder}/kernels"}
        pipe, nothing = subprocess.PIPE, subprocess.DEVNULL
        run = subprocess.Popen(command, stdout=nothing, stderr=pipe, text=True, env=os.environ | changed)
        assert run.stderr is not None
        parts = next((found for line in run.stderr if (found := parts_of(line))), None)
        spent = sum(psutil.Process(run.pid).cpu_times()[:2])
        run.send_signal(signal.SIGTERM)
        run.communicate()
        if parts is None:
            sys.exit(f"no first step; exit code {run.returncode}")
        return parts | {"CPU seconds": spent}


def drop_caches() -> bool:
    """Drop what the kernel keeps of files; False without the right to."""
    os.sync()
    try:
        _CACHES.write_text("3\n", encoding="ascii")
    except OSError:
        return False
    return True


def tables(results: Any) -> dict[str, str]:
    """The table of this script."""
    result = results["start_up"]
    names = list(result["seconds"]["warm"])
    rows = [[name, *(ranged(parts[name]) for parts in result["seconds"].values())] for name in names]
    note = (
        f"`python benchmarks/start_up.py --runs {result['runs']}`: seconds of `hemafast train --preset "
        f"{result['preset']}` from the command to the first step: median, and range."
    )
    return {"start_up": table(f"part | {' | '.join(result['seconds'])}", rows, note, machine_line(result["machine"]))}


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set.")],
    json_file: JsonFile = Path("benchmarks/results/start_up.json"),
    preset: Annotated[str, typer.Option(help="What is trained.")] = "fast",
    runs: Annotated[int, typer.Option(help="Of each kind.")] = 5,
    cold: Annotated[bool, typer.Option(help="Drop the caches of files, for all programs here.")] = True,
) -> None:
    """Measure starts."""
    start(data, preset)
    measured = {"warm": [start(data, preset) for _ in range(runs)]}
    measured["installed anew"] = [start(data, preset, kernels=False) for _ in range(runs)]
    if cold and drop_caches():
        measured["cold disk"] = [start(data, preset) for _ in range(runs) if drop_caches()]
    seconds = {
        name: {part: spread([one[part] for one in found]) for part in found[0]} for name, found in measured.items()
    }
    write_json({"machine": machine_facts("cpu"), "preset": preset, "runs": runs, "seconds": seconds}, json_file)


if __name__ == "__main__":
    typer.run(main)
