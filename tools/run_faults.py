"""Inject faults into real processes of hemafast, and count what is lost.

python tools/run_faults.py                    # all kinds, for 25 minutes
python tools/run_faults.py --minutes 5
python tools/run_faults.py --kills 1000 --jobs 2    # two at once; goes on until so many processes were killed
python tools/run_faults.py --only disk --seed 7

The commands run on small drawn archives, in processes that are forked from this one: it has imported torch and DALI,
has a single thread, and is otherwise a Python like any other, so that a kill costs no import. After each fault the
files must be whole; at the end of each episode the command is given again and must leave what it leaves undisturbed,
bit for bit, no other file, and no process. Exits with 1 if anything was lost.
"""

from __future__ import annotations

import gc
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import typer
from faults import listed, native, process
from faults.battery import Battery
from faults.inject import INJECTORS, NEED_LIBRARY
from faults.tally import Tally
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from output import write_json  # a script beside the package, not a part of it

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
"""What keeps libraries from starting threads when they are imported."""

ORDER = (
    *("kill", "signals", "disk", "kill", "resume-twice", "clock", "kill", "files", "disk", "kill", "short-write"),
    *("files", "surroundings", "kill", "rank", "disk", "kill", "restarts", "signals", "disk", "kill"),
)
"""One round."""
ONCE = frozenset({"rank", "surroundings"})
"""Slow ones, whose processes import everything."""

app = typer.Typer(add_completion=False)


def started_anew(place: Path) -> None:
    """Start this program again with the library and without threads; returns in the program that was started so."""
    if os.environ.get("FAULTS_PLACE"):
        return
    library = native.build(place)
    preloaded = {"LD_PRELOAD": str(library)} if library else {}
    cache = {"XDG_CACHE_HOME": str(place / "cache"), "FAULTS_PLACE": str(place), "HF_HUB_OFFLINE": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ONE_THREAD, **preloaded, **cache})


def chosen(only: Sequence[str]) -> Iterator[str]:
    """Names of faults, round after round."""
    unknown = set(only) - INJECTORS.keys()
    if unknown:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: known are {', '.join(INJECTORS)}")
    done = set[str]()
    for name in cycle([name for name in ORDER if not only or name in only] or list(only)):
        if name in done & ONCE:
            if set(only) and set(only) <= done:
                return
            continue
        done.add(name)
        yield name


def inject(battery: Battery, only: Sequence[str], kills: int, console: Console) -> None:
    """Inject until the time is over and enough processes were killed."""
    killed = battery.tally("kill")
    for name in chosen(only):
        if battery.over:
            if killed.injected >= kills:
                return
            if name != "kill":
                continue
        tally = battery.tally(name)
        if name in NEED_LIBRARY and not native.is_loaded():
            tally.skipped = "no C compiler: install cc"
            continue
        before = tally.lost
        INJECTORS[name](battery)
        if tally.lost > before:
            console.print(f"lost: {name}: {'; '.join(list(tally.reasons)[-3:])}", markup=False)


def shown(tallies: dict[str, Tally]) -> Table:
    """The table at the end."""
    table = Table("fault", "injected", "survived", "lost", "why")
    for name, tally in tallies.items():
        why = tally.skipped or "\n".join(f"{reason} ({times})" for reason, times in tally.reasons.most_common())
        table.add_row(name, *map(str, (tally.injected, tally.survived, tally.lost)), why)
    return table


def side_by_side(jobs: int, options: Mapping[str, Any]) -> dict[str, Tally]:
    """The counts of several batteries at once, which share the kills that are asked for and differ in their seeds."""
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        files = [Path(folder, f"{number}.json") for number in range(jobs)]
        shared = {**options, "kills": -(-options["kills"] // jobs)}
        running = [
            subprocess.Popen([sys.executable, __file__, *_options(own)], stdout=subprocess.DEVNULL)
            for number, file in enumerate(files)
            for own in ({**shared, "seed": options["seed"] + number, "json": file},)
        ]
        for one in running:
            one.wait()
        parts = [json.loads(file.read_text(encoding="utf-8"))["faults"] for file in files]
    return {name: Tally.of([part[name] for part in parts]) for name in parts[0]}


def _options(asked: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    given = [(name, one) for name, value in asked.items() for one in (value if isinstance(value, list) else [value])]
    return [word for name, value in given for word in (f"--{name}", f"{value}")]


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Minutes in which faults are injected.", min=0)] = 25,
    kills: Annotated[int, typer.Option(help="Go on until so many processes were killed.", min=0)] = 0,
    only: Annotated[list[str], typer.Option(help="Inject this kind only; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of the moments and forms.")] = 0,
    jobs: Annotated[int, typer.Option(help="Batteries at once; each keeps one core busy.", min=1)] = 1,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where to write the counts.")] = None,
) -> None:
    """Inject faults, print what was injected, survived and lost, and exit with 1 if anything was lost."""
    asked = {"minutes": f"{minutes:g}", "kills": kills, "only": only, "seed": seed}
    console, began = Console(), time.monotonic()
    tallies = one_battery(minutes, kills, only, seed) if jobs == 1 else side_by_side(jobs, asked)
    console.print(shown(tallies))
    if json_file is not None:
        write_json(result(tallies, time.monotonic() - began, {**asked, "jobs": jobs * (jobs > 1)}), json_file)
    raise typer.Exit(int(any(tally.lost for tally in tallies.values())))


def one_battery(minutes: float, kills: int, only: Sequence[str], seed: int) -> dict[str, Tally]:
    """The counts of one battery, in this process and those that are forked from it."""
    place = Path(os.environ.get("FAULTS_PLACE") or tempfile.mkdtemp(prefix="faults-"))
    started_anew(place)
    from hemafast.cli import main as hemafast

    process.adopt_orphans()
    try:
        battery = Battery(hemafast, place / "rooms", random.Random(seed))
        battery.tallies = {fault.name: Tally() for fault in listed.FAULTS if not only or fault.name in only}
        battery.build()
        battery.deadline = time.monotonic() + 60 * minutes
        gc.freeze()  # what stands now is never looked at again, and so stays shared with the forked processes
        inject(battery, only, kills, Console(stderr=True))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return battery.tallies


def result(tallies: Mapping[str, Tally], seconds: float, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is written down: the command with the options that were `asked` for, the machine and the counts."""
    from hemafast.engine.machine import machine_facts

    given = {name: value for name, value in asked.items() if value or name == "seed"}
    return {
        "command": " ".join(["python tools/run_faults.py", *_options(given)]),
        "minutes": round(seconds / 60, 1),
        "machine": machine_facts("cpu"),
        "faults": {name: tally.to_json() for name, tally in tallies.items()},
    }


if __name__ == "__main__":
    app()
