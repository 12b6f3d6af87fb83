"""The search: each reader in a process of its own with bounded memory, which may die."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fuzz.targets import Target

ROOT = Path(__file__).resolve().parent.parent.parent
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
"""Inputs that failed once, in a folder per target. They are read before anything is searched."""

HYPOTHESIS, ATHERIS = "hypothesis", "atheris"
"""Engines: one draws inputs that nearly fit, the other changes inputs that reach new lines of Python."""

ROOM = 2 * 2**30
"""Bytes of address space that a reader may take on top of what its process has when it begins."""
BATCH = 250
"""Inputs after which hypothesis may forget: it keeps all that it has drawn, and models have megabytes."""
PATIENCE = 20
"""Seconds that a reader may take for one input."""


@dataclass
class Outcome:
    """What became of the inputs of one target."""

    inputs: int = 0
    refused: int = 0
    seconds: float = 0.0
    failures: dict[str, bytes] = field(default_factory=dict)
    """The shortest input by fault: the kind of the error, and where hemafast was."""


def search(name: str, make: Callable[[Path], Target], inputs: int, seed: int, engine: str = HYPOTHESIS) -> Outcome:
    """Give a target the corpus, then `inputs` inputs, in a child process.

    A child that a signal ends counts as a fault; what it read last is the input.
    """
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        room = Path(folder)
        child = multiprocessing.get_context("fork").Process(
            target=_attack, args=(name, make, inputs, seed, room, engine)
        )
        began = time.monotonic()
        child.start()
        child.join()
        outcome = _outcome_of(room)
        outcome.seconds = round(time.monotonic() - began, 1)
        if child.exitcode:
            ended = signal.Signals(-child.exitcode).name if child.exitcode < 0 else f"exit code {child.exitcode}"
            said = _read(room / "noise").decode("utf-8", "replace").strip().rpartition("\n")[2][-200:]
            outcome.failures[f"process ended by {ended}: {said}"] = _read(room / "input")
        return outcome


def _attack(name: str, make: Callable[[Path], Target], inputs: int, seed: int, room: Path, engine: str) -> None:
    inner, outcome = room / "room", Outcome()
    inner.mkdir()
    _quiet(room)
    target = make(inner)
    if target.sound is not None:
        target.read(target.sound)  # imports what is needed; a fault of the search if it raises
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + ROOM, -1))
    signal.signal(signal.SIGALRM, _too_slow)
    for known in sorted((CORPUS / name).glob("*")):
        _try(target, known.read_bytes(), outcome, room)
    _ENGINES[engine](target, max(1, inputs - outcome.inputs), seed, outcome, room)
    _write(room, outcome)


def _draw(target: Target, inputs: int, seed: int, outcome: Outcome, room: Path) -> None:
    """Draw inputs from the target's own strategy, a batch at a time."""
    for before in range(0, inputs, BATCH):
        _draw_batch(target, min(BATCH, inputs - before), f"{seed}, after {before}", outcome, room)


def _draw_batch(target: Target, inputs: int, seed: str, outcome: Outcome, room: Path) -> None:
    from hypothesis import HealthCheck, Phase, Verbosity, given, settings
    from hypothesis import seed as seeded

    @seeded(seed)
    @settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(target.inputs)
    def attack(data: bytes) -> None:
        _try(target, data, outcome, room)

    attack()


def _change(target: Target, inputs: int, seed: int, outcome: Outcome, room: Path) -> None:
    """Change an input that the target takes, and go on with what reaches new lines of Python. Ends the process."""
    import atheris

    left, seeds = count(inputs - 1, -1), room / "seeds"
    seeds.mkdir()
    (seeds / "sound").write_bytes(target.sound or b"")

    def attack(data: bytes) -> None:
        _try(target, data, outcome, room)
        if next(left) == 0:
            _write(room, outcome)
            os._exit(0)  # libFuzzer takes any other end for a crash

    atheris.Setup(["fuzz", f"-seed={seed}", "-timeout=0", "-rss_limit_mb=0", str(seeds)], attack)
    atheris.Fuzz()


_ENGINES = {HYPOTHESIS: _draw, ATHERIS: _change}


def _try(target: Target, data: bytes, outcome: Outcome, room: Path) -> None:
    """Read one input, and count what happened."""
    (room / "input").write_bytes(data)
    outcome.inputs += 1
    signal.alarm(PATIENCE)
    try:
        target.read(data)
    except target.refusals as error:
        outcome.refused += 1
        if (short := _memory_error_of(error)) is not None:
            _keep(outcome, f"refused for want of memory, {_place_of(short)}", data)
    except BaseException as error:
        _keep(outcome, f"{type(error).__name__} {_place_of(error)}", data)
    finally:
        signal.alarm(0)
    if outcome.inputs % 500 == 0:
        _write(room, outcome)  # for a child that dies


def _keep(outcome: Outcome, fault: str, data: bytes) -> None:
    kept = outcome.failures.get(fault)
    if kept is None or len(data) < len(kept):
        outcome.failures[fault] = data


def _memory_error_of(error: BaseException | None) -> BaseException | None:
    """The error among the causes that says that memory ran out: on a larger machine, the reader would have taken it."""
    while error is not None:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return error
        error = error.__cause__ or error.__context__
    return None


def _place_of(error: BaseException) -> str:
    """The innermost function of hemafast that the error passed through."""
    frames = [one for one in traceback.extract_tb(error.__traceback__) if "/hemafast/" in one.filename]
    last = frames[-1] if frames else None
    return f"{last.filename.rpartition('/hemafast/')[2]}:{last.name}" if last else "outside"


def _too_slow(*_: object) -> None:
    raise TimeoutError(f"longer than {PATIENCE} s")


def _quiet(room: Path) -> None:
    """Send what C libraries print to a file."""
    noise = os.open(room / "noise", os.O_WRONLY | os.O_CREAT)
    os.dup2(noise, 1)
    os.dup2(noise, 2)


def _address_space() -> int:
    (line,) = [one for one in _read(Path("/proc/self/status")).decode().splitlines() if one.startswith("VmSize")]
    return int(line.split()[1]) * 1024


def _write(room: Path, outcome: Outcome) -> None:
    plain = asdict(outcome) | {"failures": {fault: data.hex() for fault, data in outcome.failures.items()}}
    (room / "outcome.part").write_text(json.dumps(plain), encoding="utf-8")
    (room / "outcome.part").replace(room / "outcome.json")


def _outcome_of(room: Path) -> Outcome:
    try:
        plain: dict[str, Any] = json.loads((room / "outcome.json").read_text(encoding="utf-8"))
    except OSError:
        return Outcome()
    return Outcome(**plain | {"failures": {fault: bytes.fromhex(data) for fault, data in plain["failures"].items()}})


def _read(file: Path) -> bytes:
    return file.read_bytes() if file.exists() else b""


def summary(outcomes: dict[str, Outcome], keep: Path | None = None) -> dict[str, Any]:
    """What was found, as plain data; the failing inputs are written below `keep`."""
    failures: Sequence[tuple[str, str, bytes]] = [
        (name, fault, data) for name, outcome in outcomes.items() for fault, data in outcome.failures.items()
    ]
    for number, (name, _, data) in enumerate(failures):
        if keep is not None:
            (keep / name).mkdir(parents=True, exist_ok=True)
            (keep / name / f"{number:02d}").write_bytes(data)
    return {
        "inputs": sum(one.inputs for one in outcomes.values()),
        "seconds": round(sum(one.seconds for one in outcomes.values()), 1),
        "failures": [{"target": name, "fault": fault, "bytes": len(data)} for name, fault, data in failures],
        "targets": {name: _counts(one) for name, one in outcomes.items()},
    }


def _counts(outcome: Outcome) -> dict[str, float]:
    return {"inputs": outcome.inputs, "refused": outcome.refused, "seconds": outcome.seconds}
