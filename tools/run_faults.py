"""Inject faults into real processes of hemafast, and count what is lost.

python tools/run_faults.py                    # all kinds, for 25 minutes
python tools/run_faults.py --minutes 5 --json runs/faults.json      # adds to the counts in that file
python tools/run_faults.py --kills 1000 --jobs 2    # two at once; goes on until so many processes were killed
python tools/run_faults.py --only disk --seed 7

The commands run on small drawn archives, in processes that are forked from this one: it has imported torch and DALI,
has a single thread, and is otherwise a Python like any other, so that a kill costs no import. After each fault the
files must be whole; at the end of each episode the command is given again and must leave what it leaves undisturbed,
bit for bit, no other file, and no process. Exits with 1 if anything was lost.

After each episode the counts are in the file of --json, whenever this is stopped, and the next call adds to them with
other moments. Remove the file to begin anew.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Annotated, Any

import typer
from faults import listed, native, process
from faults.battery import Battery
from faults.inject import INJECTORS, NEED_LIBRARY
from faults.jobs import JOBS
from faults.tally import Tally
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from output import before, write_json  # a script beside the package, not a part of it

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

_THEN = "; "  # between the commands of several sittings

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


@dataclass(frozen=True)
class Store:
    """Counts in a file that is whole at any moment. Batteries at once and later calls add to it."""

    file: Path
    options: Sequence[str]
    """Words of the command line."""
    machine: dict[str, str]

    def add(self, fresh: Mapping[str, Tally], seconds: float = 0.0) -> dict[str, Tally]:
        """Add counts and the time they took; returns all. Ends the process if the file is of another processor."""
        with _alone(self.file.parent):
            known = before(self.file, self.machine)
            counted = tallies(known.get("faults", {}))
            for name, tally in fresh.items():
                counted[name] = counted.get(name, Tally()) + tally
            write_json(self._result(counted, known, seconds / 60), self.file)
        return counted

    def _result(self, counted: Mapping[str, Tally], known: Mapping[str, Any], minutes: float) -> dict[str, Any]:
        command = " ".join(["python tools/run_faults.py", *self.options])
        earlier = known.get("command", command).split(_THEN)
        return {
            "command": _THEN.join(dict.fromkeys([*earlier, command])),
            "minutes": round(known.get("minutes", 0.0) + minutes, 6),
            "machine": self.machine,
            "faults": {name: tally.to_json() for name, tally in counted.items()},
        }


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other battery is writing into this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    held = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield
    finally:
        os.close(held)


def inject(battery: Battery, only: Sequence[str], kills: int, store: Store, console: Console) -> None:
    """Inject until the time is over and the store counts enough killed processes."""
    counted = store.add({})
    for name in chosen(only):
        if battery.over:
            if not kills or counted["kill"].injected >= kills:
                return
            if name != "kill":
                continue
        began = time.monotonic()
        if name in NEED_LIBRARY and not native.is_loaded():
            battery.tally(name).skipped = "no C compiler: install cc"
        else:
            INJECTORS[name](battery)
        if lost := battery.tally(name).reasons:
            console.print(f"lost: {name}: {'; '.join(list(lost)[-3:])}", markup=False)
        counted = store.add(battery.take(), time.monotonic() - began)


def tallies(kept: Mapping[str, Any]) -> dict[str, Tally]:
    """The counts in a file, by fault."""
    return {name: Tally.from_json(one) for name, one in kept.items()}


def shown(counted: Mapping[str, Tally]) -> Table:
    """The table at the end."""
    table = Table("fault", "injected", "survived", "lost", "why")
    for name, tally in counted.items():
        why = tally.skipped or "\n".join(f"{reason} ({times})" for reason, times in tally.reasons.most_common())
        table.add_row(name, *map(str, (tally.injected, tally.survived, tally.lost)), why)
    return table


def side_by_side(jobs: int, asked: Mapping[str, Any], file: Path) -> None:
    """Let several batteries add to one file at once. Ends the process if one of them could not work."""
    command = [sys.executable, __file__, *options({**asked, "json": file})]
    running = [
        subprocess.Popen([*command, "--number", f"{number}"], stdout=subprocess.DEVNULL) for number in range(jobs)
    ]
    failed = [one.args for one in running if one.wait() not in (0, 1)]
    if failed:
        sys.exit(f"{len(failed)} of {jobs} batteries could not work.")


def options(asked: Mapping[str, Any]) -> list[str]:
    """The options as words of a command line, without those that were not given."""
    given = {name: value for name, value in asked.items() if value or name == "seed"}
    pairs = [(name, one) for name, value in given.items() for one in (value if isinstance(value, list) else [value])]
    return [word for name, value in pairs for word in (f"--{name}", f"{value}")]


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="Minutes in which faults are injected.", min=0)] = 25,
    kills: Annotated[int, typer.Option(help="Go on until so many processes were killed.", min=0)] = 0,
    only: Annotated[list[str], typer.Option(help="Inject this kind only; may be repeated.")] = [],  # noqa: B006
    seed: Annotated[int, typer.Option(help="Seed of the moments and forms.")] = 0,
    jobs: Annotated[int, typer.Option(help="Batteries at once; each keeps one core busy.", min=1)] = 1,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Counts, written after each episode. An existing file is added to.")
    ] = None,
    number: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Inject faults, print what was injected, survived and lost, and exit with 1 if anything was lost."""
    if kills and only and "kill" not in only:
        raise typer.BadParameter("--kills needs --only kill, if --only is given")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing is left behind
    asked = {"minutes": f"{minutes:g}", "kills": kills, "only": only, "seed": seed, "jobs": jobs * (jobs > 1)}
    place = Path(os.environ.get("FAULTS_PLACE") or tempfile.mkdtemp(prefix="faults-"))
    file = json_file or place / "faults.json"
    try:
        if jobs > 1 and number is None:
            side_by_side(jobs, asked, file)
        else:
            if number is not None:
                process.end_with_parent(signal.SIGTERM)
            one_battery(place, minutes, kills, only, f"{seed} {number}", file, options(asked))
        kept = json.loads(file.read_text(encoding="utf-8"))["faults"]
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        process.end_all()
        shutil.rmtree(place, ignore_errors=True)
    counted = tallies(kept)
    Console().print(shown(counted))
    raise typer.Exit(int(any(tally.lost for tally in counted.values())))


def one_battery(
    place: Path, minutes: float, kills: int, only: Sequence[str], seed: str, file: Path, words: Sequence[str]
) -> None:
    """Let one battery add to the counts in `file`, in this process and those that are forked from it."""
    started_anew(place)
    from hemafast.cli import main as hemafast
    from hemafast.engine.machine import machine_facts

    process.adopt_orphans()
    battery = Battery(hemafast, place / "rooms", random.Random())
    battery.build()
    store = Store(file, words, machine_facts("cpu"))
    counted = store.add({fault.name: Tally() for fault in listed.FAULTS if not only or fault.name in only})
    battery.random.seed(f"{seed} {sum(tally.injected for tally in counted.values())}")  # other moments than before
    battery.turn = battery.random.randrange(len(JOBS))
    battery.deadline = time.monotonic() + 60 * minutes
    gc.freeze()  # what stands now is never looked at again, and so stays shared with the forked processes
    inject(battery, only, kills, store, Console(stderr=True))


if __name__ == "__main__":
    app()
