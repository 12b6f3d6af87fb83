"""The first minutes on a machine with a GPU: tests, trainings and measurements, the most valuable first.

    python benchmarks/gpu_day_one.py run --data Source/prepared --out benchmarks/results/gpu
    python benchmarks/gpu_day_one.py run ... --dry-run            # print the commands
    python benchmarks/gpu_day_one.py run ... --piece 1/4          # one of four calls, each below three minutes
    python benchmarks/gpu_day_one.py run ... --only bench --only profile
    python benchmarks/gpu_day_one.py run ... --skip-done          # what has not passed yet

Each step is a process with a time limit, and leaves `OUT/NAME.json` as soon as it ends, whatever becomes of the others:
its state (passed, failed, out of time, skipped), the reason, and what it had measured by then. `OUT/NAME.log` has what
it printed. A step that lacks something, as a card or a package, is skipped with the reason and never passes. hemafast
need not be installed: run this from the root of the repository, and name folders of unpacked packages that the machine
lacks with --packages. The exit code is 0 if no step failed.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ROOT = Path(__file__).resolve().parent.parent
WHOLE_SECONDS = 480
"""All limits together."""
PIECE_SECONDS = 180
"""Limits of the steps of one piece together."""
SKIPPED_CODE = 3
"""Exit code of a step that lacks something; its result says what."""

State = Literal["passed", "failed", "out of time", "skipped"]


@dataclass(frozen=True, slots=True)
class Step:
    """One process with a limit."""

    name: str
    seconds: int
    """Its limit."""
    needs: tuple[str, ...] = ()
    """Steps whose results it reads."""


STEPS = (
    Step("machine", 20),
    Step("tests", 55),
    Step("train_fast", 45),
    Step("train_b0", 45),
    Step("bench", 60),
    Step("profile", 35),
    Step("compile_modes", 90),
    Step("batch_sweep", 40),
    Step("inputs", 25),
    Step("decode_parity", 20, needs=("train_fast",)),
    Step("one_rank", 25),
    Step("export", 15, needs=("train_fast",)),
)
"""The most valuable first."""


@dataclass(frozen=True, slots=True)
class Record:
    """The content of a step's JSON file."""

    step: str
    state: State
    reason: str
    seconds: float
    limit: float
    command: str
    result: dict[str, Any] = field(default_factory=dict)
    """What the step measured before it ended."""


def run_step(step: Step, command: Sequence[str], out: Path, limit: float, environment: dict[str, str]) -> Record:
    """Run one step for at most `limit` seconds and write its record. The command writes `OUT/NAME.part`."""
    part, log = out / f"{step.name}.part", out / f"{step.name}.log"
    part.unlink(missing_ok=True)
    (out / f"{step.name}.json").unlink(missing_ok=True)  # of an earlier call
    started = time.monotonic()
    with log.open("w", encoding="utf-8") as said:
        process = subprocess.Popen(
            command,
            stdout=said,
            stderr=said,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
        )
        try:
            code: int | None = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            _end(process)
    result = read(part)
    state, reason = _judge(code, limit, result, log)
    record = Record(step.name, state, reason, time.monotonic() - started, limit, shlex.join(command), result)
    write(out / f"{step.name}.json", asdict(record))
    part.unlink(missing_ok=True)
    return record


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a step and the processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _judge(code: int | None, limit: float, result: dict[str, Any], log: Path) -> tuple[State, str]:
    if code is None:
        return "out of time", f"not done after {limit:.0f} s; --patience 2 doubles every limit"
    if code == SKIPPED_CODE:
        return "skipped", str(result.get("skipped", "it does not say why"))
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return "failed", f"exit code {code}: {lines[-1] if lines else 'no output'}"
    if not result:
        return "failed", "it ended well, but measured nothing"
    return "passed", ""


def read(part: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none."""
    try:
        found: dict[str, Any] = json.loads(part.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def write(file: Path, content: dict[str, Any]) -> None:
    """Replace `file` by this JSON."""
    new = file.with_name(file.name + ".new")
    new.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    new.replace(file)


def lacks(step: Step, out: Path) -> str:
    """Why a step cannot run: a step that it reads has not passed. Empty if it can."""
    missing = [name for name in step.needs if read(out / f"{name}.json").get("state") != "passed"]
    return f"needs the step {' and '.join(missing)}, which has not passed" if missing else ""


def skip(step: Step, out: Path, reason: str, limit: float) -> Record:
    """Record that a step was not run."""
    record = Record(step.name, "skipped", reason, 0.0, limit, "")
    write(out / f"{step.name}.json", asdict(record))
    return record


def pieces(steps: Sequence[Step], count: int) -> list[list[Step]]:
    """The steps in order, in at most `count` pieces whose longest is as short as it can be."""
    for capacity in range(max(step.seconds for step in steps), sum(step.seconds for step in steps) + 1):
        groups: list[list[Step]] = [[]]
        for step in steps:
            if sum(one.seconds for one in groups[-1]) + step.seconds > capacity:
                groups.append([])
            groups[-1].append(step)
        if len(groups) <= count:
            return groups
    return [list(steps)]


def chosen(only: Sequence[str], piece: str, out: Path, *, skip_done: bool) -> list[Step]:
    """The steps that are asked for. Raises typer.BadParameter for a name or a piece that there is none of."""
    names = [step.name for step in STEPS]
    if unknown := [name for name in only if name not in names]:
        raise typer.BadParameter(f"--only {unknown[0]}: choose from {', '.join(names)}.")
    steps = [step for step in STEPS if not only or step.name in only]
    if piece:
        number, _, count = piece.partition("/")
        if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise typer.BadParameter(f"--piece {piece}: write it as 1/4.")
        groups = pieces(steps, int(count))
        steps = groups[int(number) - 1] if int(number) <= len(groups) else []
    return [step for step in steps if not (skip_done and read(out / f"{step.name}.json").get("state") == "passed")]


def environment_of(step: Step, out: Path, packages: Sequence[Path]) -> dict[str, str]:
    """Its environment: our code and carried packages first, and caches of its own, so that no step hides another."""
    paths = [ROOT, *(folder.absolute() for folder in packages)]
    cache = out / "cache" / step.name
    shutil.rmtree(cache, ignore_errors=True)
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "XDG_CACHE_HOME": str(cache),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Data = Annotated[Path, typer.Option(help="Prepared data set.")]
DeviceName = Annotated[str, typer.Option(help="cuda; cpu rehearses the script, and its figures say nothing of a card.")]


@app.command()
def run(
    data: Data = Path("Source/prepared"),
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results/gpu"),
    device: DeviceName = "cuda",
    only: Annotated[list[str] | None, typer.Option(help="Run these steps alone.")] = None,
    piece: Annotated[str, typer.Option(help="Run one of several pieces, as 1/4.")] = "",
    skip_done: Annotated[bool, typer.Option("--skip-done", help="Leave out steps that have passed.")] = False,
    packages: Annotated[list[Path] | None, typer.Option(help="Folder of unpacked packages.")] = None,
    patience: Annotated[float, typer.Option(min=0.1, help="Factor of every limit.")] = 1.0,
    tiny: Annotated[bool, typer.Option("--tiny", help="Small networks and images, to rehearse on a CPU.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the commands.")] = False,
) -> None:
    """Run all steps, or those that are asked for."""
    out, failed = out.absolute(), False
    for step in chosen(only or [], piece, out, skip_done=skip_done):
        limit = step.seconds * patience
        asked = ["step", step.name, "--data", str(data.absolute()), "--out", str(out), "--device", device]
        command = [sys.executable, "benchmarks/gpu_steps.py", *asked[1:], *(["--tiny"] if tiny else [])]
        if dry_run:
            typer.echo(f"timeout {limit:g} {shlex.join(['python', *command[1:]])}")
            continue
        out.mkdir(parents=True, exist_ok=True)
        reason = lacks(step, out)
        environment = environment_of(step, out, packages or [])
        record = skip(step, out, reason, limit) if reason else run_step(step, command, out, limit, environment)
        failed |= record.state in ("failed", "out of time")
        typer.echo(f"{step.name:14} {record.state:12} {record.seconds:5.0f} s  {record.reason}")
    if failed:
        raise typer.Exit(1)


@app.command()
def show(out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results/gpu")) -> None:
    """Say what became of every step."""
    for step in STEPS:
        found = read(out / f"{step.name}.json")
        typer.echo(f"{step.name:14} {found.get('state', 'not run'):12} {found.get('reason', '')}")


if __name__ == "__main__":
    app()
