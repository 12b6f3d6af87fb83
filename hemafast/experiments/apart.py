"""Runs in processes of their own, several at a time, each on cores of its own.

A run that runs out of memory, or that a library ends, is then the failure of that run alone.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hemafast.config import TrainConfig, checked, to_json
from hemafast.cores import cores
from hemafast.engine.stop import SIGNALS, StopFlag, exit_code
from hemafast.errors import StoppedError
from hemafast.nvidia import uses_gpu
from hemafast.progress import SILENT, Progress
from hemafast.reading import parse_json
from hemafast.waiting import spin_briefly
from hemafast.words import counted

logger = logging.getLogger("hemafast")

_PAUSE = 0.2  # seconds between two looks at the processes
_LAST_WORDS = 60.0  # seconds in which a process that was told to stop may save
_MOST_BYTES = 2**16  # of what a process says at its end
_PR_SET_PDEATHSIG = 1  # of prctl: the signal that a process gets when its parent ends


def processes_for(config: TrainConfig, runs: int) -> int:
    """How many runs with these settings to train at once: one for each core, but one on a GPU, which they would share.

    One under a time budget too: the score would depend on how much of the machine each run had.
    """
    alone = config.time_budget is not None or uses_gpu(config.device)
    return 1 if alone else max(1, min(runs, cores()))


@dataclass(frozen=True, slots=True)
class Ended:
    """A run whose process has ended."""

    folder: Path | None
    """Where it lies, evaluated; None if it failed."""
    reason: str
    """Why it failed; empty if it did not."""


def train_apart(
    configs: Mapping[str, TrainConfig], processes: int, *, progress: Progress = SILENT
) -> Iterator[tuple[str, Ended]]:
    """Train and evaluate runs, each in a process of its own, as `runs.run_all` does in this one.

    Args:
        configs: the settings of each run by name.
        processes: how many run at a time; they share the cores of this process evenly.
        progress: listens to the number of runs that have ended.

    Returns:
        The name of each run as it ends, and what came of it.

    Raises:
        StoppedError: a signal came. All processes were told, and have saved their runs.
    """
    waiting, running, free, left = deque(configs.items()), dict[str, _Job](), deque(shares(processes)), set(configs)
    cores_of_each = counted(len(free[0]), "core")
    logger.info("%d runs, %d at a time on %s each: see train.log of each", len(configs), processes, cores_of_each)
    progress.start("training", len(configs), unit="runs")
    with StopFlag() as flag:
        try:
            while (waiting and not flag.number) or running:
                while waiting and free and not flag.number:
                    name, config = waiting.popleft()
                    running[name] = _Job.start(config, free.popleft())
                for name in [name for name, job in running.items() if job.process.poll() is not None]:
                    job = running.pop(name)
                    free.append(job.cores)
                    ended = job.ended()
                    if not flag.number:
                        left.remove(name)
                        progress.advance()
                        yield name, ended
                for job in running.values():
                    job.tell(flag.number)
                time.sleep(_PAUSE)
        finally:
            _end(running.values())
    progress.finish()
    if flag.number and left:
        said = signal.Signals(flag.number).name
        raise StoppedError(
            f"Stopped by {said}; the runs are saved.", "Call again to continue.", exit_code=exit_code(flag.number)
        )


def shares(processes: int) -> list[list[int]]:
    """The cores of this process, dealt to so many processes; some cores are dealt twice if there are too few."""
    available = sorted(os.sched_getaffinity(0))
    each = max(1, len(available) // processes)
    return [[available[(place * each + one) % len(available)] for one in range(each)] for place in range(processes)]


@dataclass(slots=True)
class _Job:
    """One run in its process."""

    process: subprocess.Popen[bytes]
    answer: IO[bytes]
    errors: IO[bytes]
    cores: list[int]
    told: int = 0
    """The signal that it was sent."""

    @classmethod
    def start(cls, config: TrainConfig, on: list[int]) -> _Job:
        answer, errors, settings = (tempfile.TemporaryFile() for _ in range(3))  # noqa: SIM115 # closed in `ended`
        settings.write(to_json(config).encode())
        settings.seek(0)
        # Not PYTHONPATH, beside which the working directory would be searched too.
        code = f"import sys; sys.path[:] = {sys.path}; from hemafast.experiments.apart import serve; exit(serve({on}))"
        environment = dict(os.environ)
        spin_briefly(environment)
        with settings:
            process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=settings,
                stdout=answer,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C stops the parent, which tells the others
            )
        return cls(process, answer, errors, on)

    def tell(self, number: int) -> None:
        """Send a signal, once."""
        if number and not self.told:
            self.told = number
            self.process.send_signal(number)

    def ended(self) -> Ended:
        """What came of the run; its process has ended."""
        with self.answer, self.errors:
            code = self.process.returncode
            for file in (self.answer, self.errors):
                file.seek(max(0, file.seek(0, os.SEEK_END) - _MOST_BYTES))
            lines, said = self.answer.read().splitlines(), self.errors.read().decode("utf-8", "replace").split("\n")
        if code == 0 and lines:
            answer = parse_json(lines[-1].decode("utf-8"))
            return Ended(None if answer["folder"] is None else Path(answer["folder"]), str(answer["reason"]))
        return Ended(None, self._unanswered(code, said))

    @staticmethod
    def _unanswered(code: int, said: Sequence[str]) -> str:
        """Why there is no answer, from the exit code of the process and the lines of its standard error."""
        if stopped := [number.name for number in SIGNALS if exit_code(number) == code]:
            return f"its process was stopped by {stopped[0]}; call again to continue"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}, as it is where memory runs out"
        return next((line for line in reversed(said) if line.strip()), f"its process ended with exit code {code}")


def _end(jobs: Collection[_Job]) -> None:
    """End processes that still run: whoever iterates has given up, or a second signal came."""
    for job in jobs:
        job.process.send_signal(signal.SIGTERM)  # does nothing where the process has ended
    for job in jobs:
        try:
            job.process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            job.process.kill()
            job.process.wait()
        job.ended()  # closes its files


def serve(on: Sequence[int]) -> int:
    """What such a process does: the run whose settings are on standard input, on these cores.

    The last line of standard output is the answer. Returns its exit code: that of a signal if one stopped the run.
    """
    os.sched_setaffinity(0, on)  # before torch counts them
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)  # it saves, though nobody is left to hear of it
    from hemafast.experiments.runs import Failed, outcome_of

    config = checked(TrainConfig, parse_json(sys.stdin.read()))
    try:
        outcome = outcome_of("the run", config)
    except StoppedError as error:
        return error.exit_code
    if isinstance(outcome, Failed):
        answer: dict[str, str | None] = {"folder": None, "reason": outcome.reason}
    else:
        answer = {"folder": str(outcome.folder), "reason": ""}
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
    return 0
