"""The commands that faults are injected into, on small drawn archives, and what each of them leaves."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, str]
"""Hashes of all that a command leaves and that does not depend on the time, by name."""

NETWORK = (
    *("--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--batch-size", "16", "--lr", "0.001"),
    *("--compile", "off", "--device", "cpu", "--amp", "off", "--threads", "1", "--quiet"),
)
"""The smallest network, from random weights."""

_TIMES = ("seconds", "waited", "elapsed", "ending", "per_second", "share", "settings")
_STAMP = re.compile(r"\d{8}_\d{6}(?=_)|(?<=tfevents\.)[\w.-]+|(?<=\w)-\d+(?=/|$)")  # the last: runs of one second
_ENDS = ("metrics.json", "predictions.csv", "calibration.json")


@dataclass(frozen=True)
class Job:
    """A command that can be interrupted and given again."""

    name: str
    arguments: tuple[str, ...]
    starts_from: tuple[str, ...]
    """What it needs, by name in the folder that `make_base` fills."""
    result: Callable[[Path], Result]
    """What it has left in its working folder."""


def make_base(base: Path, hemafast: Callable[..., None]) -> None:
    """Draw archives, prepare them, train and evaluate a run, and draw cells of another laboratory.

    Args:
        base: an empty folder.
        hemafast: runs the command with these arguments in this folder. It raises an error if that fails.
    """
    from hemafast.demo.archives import write_demo_archives

    write_demo_archives(base / "src", images=120)
    hemafast("prepare", "--source", "src", "--output", "data", "--pack-size", "32", "--quiet")
    hemafast("train", "--data", "data", "--output", "runs", "--epochs", "1", *NETWORK)
    (run,) = (base / "runs").iterdir()
    run.rename(base / "run")
    (base / "runs").rmdir()
    (base / "cells").mkdir()
    for image in sorted((base / "data" / "images" / "Matek_19").rglob("*.*"))[::2]:
        shutil.copy(image, base / "cells" / f"{image.parent.name}_{image.name}")


def fresh_room(job: Job, base: Path, room: Path) -> None:
    """Give the job a working folder that nothing has happened in."""
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    for name in job.starts_from:
        shutil.copytree(base / name, room / name, symlinks=True)


def names(room: Path) -> list[str]:
    """Names of all files and folders of a room, without the moments in them."""
    return sorted({_STAMP.sub("", path.relative_to(room).as_posix()) for path in room.rglob("*")})


def refuse_torn(room: Path) -> None:
    """Open all that readers may trust at any moment. Raises an error for a file that is not whole."""
    for file in _whole_files(room):
        if file.name in _OPENED_BY:
            _OPENED_BY[file.name](file)
        elif file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))


def _open_best(file: Path) -> None:
    from hemafast.engine.checkpoint import read_card

    read_card(file)


def _open_last(file: Path) -> None:
    from hemafast.engine.checkpoint import load_last

    load_last(file)


def _open_rows(file: Path) -> None:
    from hemafast.engine.journal import read_rows

    read_rows(file.parent)


def _open_prepared(file: Path) -> None:
    from hemafast.preparation.reader import read_prepared

    read_prepared(file.parent)


_OPENED_BY: dict[str, Callable[[Path], None]] = {
    "best_model.safetensors": _open_best,
    "last_model.ckpt": _open_last,
    "training_log.csv": _open_rows,
    "dataset.json": _open_prepared,
}


def _whole_files(room: Path) -> Iterator[Path]:
    """Files whose names no reader would pass over: neither they nor a folder above them begin with a dot."""
    for file in sorted(room.rglob("*")):
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(room).parts):
            yield file


def _digest(value: Any) -> str:
    """A hash of nested values and tensors, without what depends on the time."""
    import torch

    found = hashlib.sha256()
    if isinstance(value, Mapping):
        for name in sorted(map(str, value)):
            if not name.endswith(_TIMES):
                found.update(f"{name}={_digest(value[name] if name in value else value[int(name)])}".encode())
    elif isinstance(value, torch.Tensor):
        found.update(f"{value.dtype}{tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for part in value:
            found.update(_digest(part).encode())
    else:
        found.update(repr(value).encode())
    return found.hexdigest()[:16]


def _prepared(room: Path) -> Result:
    folder = room / "prepared"
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files}


def _scored(run: Path) -> Result:
    """Scores of a run, and what was calibrated."""
    found = {name: _digest((run / name).read_text(encoding="utf-8")) for name in _ENDS[1:]}
    return found | {"metrics.json": _digest(json.loads((run / "metrics.json").read_text(encoding="utf-8")))}


def _trained(run: Path) -> Result:
    """Rows, weights and state of a run."""
    from hemafast.engine.checkpoint import load_best, load_last
    from hemafast.engine.journal import read_rows

    state = load_last(run / "last_model.ckpt")
    for group in state["optimizer"]["param_groups"]:
        group.pop("lr", None)  # every update sets it; none has where nothing was left to train
    return {
        "training_log.csv": _digest(read_rows(run)),
        "best_model.safetensors": _digest(load_best(run / "best_model.safetensors")[0].state_dict()),
        **{f"last_model.ckpt {name}": _digest(part) for name, part in state.items() if not name.endswith(_TIMES)},
        **_scored(run),
    }


def finished_run(runs: Path) -> Path:
    """The run with scores in a folder of runs. Raises FileNotFoundError if there is not exactly one."""
    found = [folder for folder in runs.iterdir() if (folder / "metrics.json").exists()]
    if len(found) != 1:
        raise FileNotFoundError(f"{runs} holds {len(found)} finished runs, not 1")
    return found[0]


def _exported(room: Path) -> Result:
    folder = room / "run" / "export"
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in sorted(folder.iterdir())}


def _adapted(room: Path) -> Result:
    """The newest adapted run: each call makes a folder of its own."""
    from hemafast.engine.checkpoint import load_best

    run = max(folder for folder in (room / "adapted").iterdir() if (folder / "adaptation.html").exists())
    return {
        "best_model.safetensors": _digest(load_best(run / "best_model.safetensors")[0].state_dict()),
        "adaptation.json": _digest(json.loads((run / "adaptation.json").read_text(encoding="utf-8"))),
    }


def _swept(room: Path) -> Result:
    with (room / "sweep" / "results_summary.csv").open(newline="", encoding="utf-8") as file:
        rows = [{name: _STAMP.sub("", value) for name, value in row.items()} for row in csv.DictReader(file)]
    return _trained(finished_run(room / "sweep" / "baseline")) | {"results_summary.csv": _digest(rows)}


_TRAIN = ("train", "--resume", "auto", "--data", "data", "--output", "runs", "--epochs", "3", *NETWORK)
_SWEEP = ("sweep", "seed-table", "--only", "baseline", "--data", "data", "--output", "sweep", "--epochs", "1")
_ADAPT = ("adapt", "run", "cells", "--output", "adapted", "--device", "cpu", "--quiet")


def _evaluated(room: Path) -> Result:
    return _scored(room / "run")


def _of_run(room: Path) -> Result:
    return _trained(finished_run(room / "runs"))


JOBS = {
    job.name: job
    for job in (
        Job(
            "prepare",
            ("prepare", "--source", "src", "--output", "prepared", "--pack-size", "32", "--quiet"),
            ("src",),
            _prepared,
        ),
        Job("train", _TRAIN, ("data",), _of_run),
        Job("save", (*_TRAIN, "--save-every", "0.0001"), ("data",), _of_run),
        Job(
            "evaluate", ("evaluate", "run", "--device", "cpu", "--quiet"), ("run", "data"), lambda r: _scored(r / "run")
        ),
        Job("export", ("export", "run", "--quiet"), ("run", "data"), _exported),
        Job(
            "adapt",
            ("adapt", "run", "cells", "--output", "adapted", "--device", "cpu", "--quiet"),
            ("run", "cells"),
            _adapted,
        ),
        Job("sweep", (*_SWEEP, *NETWORK), ("data",), _swept),
    )
}
"""The commands by name; `save` is a training that saves after every update."""
