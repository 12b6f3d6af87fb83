"""The training step of `--preset fast` beside busy neighbours and under a quota, against its fair share.

    python benchmarks/busy.py --json benchmarks/results/busy.json    # 15 minutes

Each setting of the OpenMP runtime trains in a process of its own, on random pixels; neighbours are processes that count
on one core each. Settings take turns within a round, so that a slow minute falls on all. A process of as many threads
as cores beside n neighbours has a fair share of cores / (cores + n) of the quiet rate; under a quota of q cores,
q / cores. Each side trains for some seconds before it is measured: hemafast looks at the load once a second. Run it on
a quiet machine: with other work, nothing is as it says. The quota needs a control group of the processor that this user
may make (as root); without one, its rows are missing and the result says why.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any
from unittest.mock import patch

import typer
from output import JsonFile, machine_line, ranged, table, write_json

from hemafast.bench.result import spread
from hemafast.waiting import SPIN_COUNT, SPINS, WAIT_POLICY

AS_IT_IS, OURS = "as it is", "hemafast"
SETTINGS: dict[str, dict[str, str]] = {
    AS_IT_IS: {},
    "10,000 spins": {SPIN_COUNT: "10000"},
    "1,000 spins": {SPIN_COUNT: "1000"},
    "no spins": {SPIN_COUNT: "0", WAIT_POLICY: "PASSIVE"},
    OURS: {SPIN_COUNT: str(SPINS)},
}
"""Variables of the environment. libgomp, which torch uses, reads them once, when it is loaded. OURS also watches."""

CORES = len(os.sched_getaffinity(0))
QUOTA = 1.5
SITUATIONS = ("0 neighbours", "1 neighbour", "2 neighbours", "3 neighbours", "quota")
_SETTLING = 8.0  # seconds until hemafast is sure that it is alone again
_PERIOD = 100_000  # microseconds, the kernel's own
_V1, _V2 = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
_COUNT = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass"
"""Ends with this process, however it ends."""
_OTHERS = (SPIN_COUNT, WAIT_POLICY, "OMP_NUM_THREADS")
"""Variables that would change what a setting means."""


def fair(situation: str) -> float:
    """The fair share of the quiet rate in a situation."""
    if situation == "quota":
        return QUOTA / CORES
    return CORES / (CORES + int(situation.split(maxsplit=1)[0]))


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many processes that use all of a core each."""
    started = [subprocess.Popen([sys.executable, "-c", _COUNT]) for _ in range(count)]
    try:
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()


@contextmanager
def quota(pid: int) -> Iterator[None]:
    """A process in a control group (version 1 or 2) with QUOTA cores. Raises OSError if none can be made."""
    old = (_V1 / "cgroup.procs").exists()
    top, file = (_V1, "cpu.cfs_quota_us") if old else (_V2, "cpu.max")
    group = top / f"busy-{os.getpid()}"
    group.mkdir()
    try:
        (group / file).write_text(f"{QUOTA * _PERIOD:.0f}", encoding="ascii")  # a period is 0.1 s unless one sets it
        (group / "cgroup.procs").write_text(str(pid), encoding="ascii")
        yield
    finally:
        (top / "cgroup.procs").write_text(str(pid), encoding="ascii")
        group.rmdir()


class Worker:
    """A process that trains as a setting says, when it is asked to."""

    def __init__(self, variables: dict[str, str], *, watches: bool) -> None:
        command = [sys.executable, __file__, "--train", *(["--watch"] if watches else [])]
        pipe = subprocess.PIPE
        kept = {name: value for name, value in os.environ.items() if name not in _OTHERS}
        self._process = subprocess.Popen(command, env=kept | variables, stdin=pipe, stdout=pipe, text=True)
        self._answer()
        self.pid = self._process.pid

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def rate(self, seconds: float) -> float:
        """Images per second over so many seconds."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        return float(self._answer())


def serve(*, watches: bool) -> None:
    """Be the worker: train for as many seconds as each line of standard input says, and answer with images/s.

    Only a worker that `watches` looks at the load, as hemafast does.
    """
    import numpy as np
    import torch

    from hemafast.config import train_config
    from hemafast.data.batch import Batch
    from hemafast.engine import machine as machines
    from hemafast.engine.learner import build_learner
    from hemafast.engine.step import Totals

    config = train_config("fast", amp="off", compile="off")
    size = 32
    with nullcontext() if watches else patch.object(machines, "yield_to_others", return_value=False):
        machine = machines.machine_for(config, "cpu")
    counts = np.full(11, 200)
    learner = build_learner(config, machine, counts, batch_size=size, started_from="random weights")
    learner.model.train()
    pixels = torch.randint(0, 256, (size, config.image_size, config.image_size, 3), dtype=torch.uint8)
    batch = Batch(pixels.permute(0, 3, 1, 2), torch.arange(size) % 11, torch.arange(size))
    totals = Totals(11, "cpu")
    for _ in range(3):
        learner.train_step(batch, 1e-4, totals, step=0)
    print("ready", flush=True)

    def trained(seconds: float) -> float:
        steps, began = 0, time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            learner.train_step(batch, 1e-4, totals, step=0)
            steps += 1
        return steps * size / passed

    for line in sys.stdin:
        trained(min(_SETTLING, 2 * float(line)))
        print(trained(float(line)), flush=True)


@contextmanager
def situation(name: str, worker: Worker) -> Iterator[None]:
    """Neighbours, or a quota for the worker."""
    with quota(worker.pid) if name == "quota" else neighbours(int(name.split(maxsplit=1)[0])):
        yield


def no_quota() -> str | None:
    """Why no quota can be measured here; None if one can."""
    try:
        with quota(os.getpid()):
            return None
    except OSError as error:
        return str(error)


def measure(seconds: float, rounds: int, situations: list[str]) -> dict[str, dict[str, list[float]]]:
    """Images per second of each setting by situation, in rounds in which the settings take turns."""
    found: dict[str, dict[str, list[float]]] = {name: {one: [] for one in situations} for name in SETTINGS}
    with ExitStack() as held:
        workers = {
            name: held.enter_context(Worker(variables, watches=name == OURS)) for name, variables in SETTINGS.items()
        }
        for number in range(rounds):
            for one in situations:
                for name, worker in workers.items():
                    with situation(one, worker):
                        found[name][one].append(worker.rate(seconds))
                print(f"round {number + 1}: {one} done", file=sys.stderr)
    return found


def judged(rates: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, Any]]:
    """Rates and their shares of what is fair, by setting and situation; a round is compared with its own quiet rate."""
    quiet = rates[AS_IT_IS][SITUATIONS[0]]
    return {
        name: {
            one: {
                "images_per_second": spread(values),
                "share": spread([value / (fair(one) * own) for value, own in zip(values, quiet, strict=True)]),
            }
            for one, values in situations.items()
        }
        for name, situations in rates.items()
    }


def _cell(measured: Any) -> str:
    return f"{ranged(measured['images_per_second'])}, {measured['share']['median']:.2f}"


def tables(results: Any) -> dict[str, str]:
    """The table of this script: images per second, and the share of what is fair."""
    result = results["busy"]
    situations = list(result["settings"][AS_IT_IS])
    rows = [[name, *(_cell(rates[one]) for one in situations)] for name, rates in result["settings"].items()]
    note = (
        f"`python benchmarks/busy.py --rounds {result['rounds']} --seconds {result['seconds']:g}`: the training step "
        "of `--preset fast`, images per second (median and range of the rounds), and the median share of the fair rate."
        f" Quota: a control group of {QUOTA:g} cores."
    )
    lines = [note, machine_line(result["machine"])]
    if result["no_quota"]:
        lines.insert(1, f"No quota was measured: {result['no_quota']}.")
    return {"busy": table(f"waiting threads | {' | '.join(situations)}", rows, *lines)}


def main(
    json_file: JsonFile = Path("benchmarks/results/busy.json"),
    rounds: Annotated[int, typer.Option(help="How often each setting is measured.")] = 3,
    seconds: Annotated[float, typer.Option(help="Of each measurement.")] = 5.0,
    train: Annotated[bool, typer.Option("--train", hidden=True)] = False,
    watch: Annotated[bool, typer.Option("--watch", hidden=True)] = False,
) -> None:
    """Measure all settings in all situations."""
    if train:
        serve(watches=watch)
        return
    from hemafast.engine.machine import machine_facts

    reason = no_quota()
    rates = measure(seconds, rounds, [one for one in SITUATIONS if one != "quota" or reason is None])
    asked = {"rounds": rounds, "seconds": seconds}
    result = {"machine": machine_facts("cpu"), **asked, "no_quota": reason, "settings": judged(rates)}
    write_json(result, json_file)


if __name__ == "__main__":
    typer.run(main)
