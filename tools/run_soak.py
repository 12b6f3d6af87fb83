"""Train thousands of short epochs in one process, and see whether memory, files, threads or the time of an epoch grow.

    python tools/run_soak.py --json benchmarks/results/soak.json --plot benchmarks/results/soak.png
    python tools/run_soak.py --epochs 400

The training is that of drawn cells by the smallest network; all that an epoch writes is written. The first tenth of the
epochs is warm-up. The second tenth is compared with the last one, each by its lower quartile: what else the machine
does only adds to the time of an epoch. Exits with 1 if anything has grown by more than 1 %. While other programs use
the processor, the time of an epoch says nothing, is not judged, and the result says so.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import psutil
import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))

from output import JsonFileOrNone, machine_line, print_json, table  # a script beside the package, not a part of it

from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.progress import Progress
from hemafast.run_folder import LOG, LOG_TABLE, TENSORBOARD

FEWEST = 20
"""Epochs that tenths can be compared of."""
ALLOWED = 0.01
"""Growth that is no drift, as a share."""
QUIET = 0.1
"""Cores that other programs may use, on average, before the time of an epoch says nothing."""
POINTS = 200
"""Epochs that the result keeps, at most."""
DRIFTS = {
    "memory": ("resident memory", "MB", 1e6),
    "files": ("open files", "", 1),
    "threads": ("threads", "", 1),
    "seconds": ("time of an epoch", "ms", 1e-3),
}
"""What may not grow: its name, unit, and divisor."""

SMALL: Mapping[str, Any] = {
    **{"model": "test_resnet", "pretrained": "no", "image_size": 32, "batch_size": 16, "lr": 1e-3},
    **{"device": "cpu", "amp": "off", "compile": "off", "threads": 1},
}
"""The smallest training."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process has and what the run has written at the end of an epoch."""

    memory: int
    """Resident, in bytes."""
    files: int
    threads: int
    seconds: float
    """Since the end of the epoch before."""
    tensorboard: int
    """Bytes of the folder."""
    logs: int
    """Bytes of the log and of its table."""


class Meter(Progress):
    """Takes a sample at the end of each epoch of the only run in a folder."""

    def __init__(self, output: Path) -> None:
        self.samples: list[Sample] = []
        self._output, self._process, self._since = output, psutil.Process(), time.perf_counter()

    def finish(self, **results: Any) -> None:
        """Take a sample if an epoch ends."""
        if "rows" not in results:
            return
        (run,) = self._output.iterdir()
        now = time.perf_counter()
        seconds, self._since = now - self._since, now
        with self._process.oneshot():
            used = self._process.memory_info().rss, self._process.num_fds(), self._process.num_threads()
        tensorboard = sum(file.stat().st_size for file in (run / TENSORBOARD).rglob("*") if file.is_file())
        logs = sum((run / name).stat().st_size for name in (LOG, LOG_TABLE) if (run / name).exists())
        self.samples.append(Sample(*used, seconds, tensorboard, logs))


class Others:
    """How many cores other programs use, on average, since this was made."""

    def __init__(self) -> None:
        self._busy, self._own, self._since = self._counted()

    def cores(self) -> float:
        """The mean number of cores."""
        busy, own, now = self._counted()
        return max((busy - self._busy - (own - self._own)) / (now - self._since), 0.0)

    @staticmethod
    def _counted() -> tuple[float, float, float]:
        all_ = psutil.cpu_times()
        return sum(all_) - all_.idle - getattr(all_, "iowait", 0.0), time.process_time(), time.monotonic()


def soak(folder: Path, epochs: int) -> dict[str, Any]:
    """Train this number of epochs in an empty folder; what was measured."""
    from hemafast.demo.archives import write_demo_archives
    from hemafast.engine.machine import machine_facts
    from hemafast.engine.trainer import train
    from hemafast.preparation.build import prepare

    write_demo_archives(folder / "source", images=120)
    prepared = {"source": folder / "source", "output": folder / "data", "pack_sizes": (32,)}
    prepare(checked(PrepareConfig, prepared))
    (output := folder / "runs").mkdir()
    meter, others = Meter(output), Others()
    train(checked(TrainConfig, {**SMALL, "data": folder / "data", "output": output, "epochs": epochs}), progress=meter)
    return {
        "command": f"python tools/run_soak.py --epochs {epochs}",
        "machine": machine_facts("cpu"),
        **measured(meter.samples, others.cores()),
    }


def measured(samples: Sequence[Sample], others: float) -> dict[str, Any]:
    """Drifts, growth and curve of a run."""
    tenth, disturbed = len(samples) // 10, others > QUIET
    early, late = samples[tenth : 2 * tenth], samples[-tenth:]
    ends = {name: tuple(_quiet(name, part) for part in (early, late)) for name in DRIFTS}
    drifts = {name: {"early": first, "late": last, "drift": last / first - 1} for name, (first, last) in ends.items()}
    judged = [name for name in DRIFTS if not (name == "seconds" and disturbed)]
    return {
        "epochs": len(samples),
        "other_cores": round(others, 2),
        "time_is_disturbed": disturbed,
        "drifts": drifts,
        "failed": [name for name in judged if drifts[name]["drift"] > ALLOWED],
        "bytes_an_epoch": {name: _growth(name, late) for name in ("tensorboard", "logs")},
        "curve": _curve(samples),
    }


def _quiet(name: str, samples: Sequence[Sample]) -> float:
    return float(np.quantile([getattr(one, name) for one in samples], 0.25))


def _growth(name: str, samples: Sequence[Sample]) -> float:
    """Bytes that an epoch adds, in the mean."""
    return float((getattr(samples[-1], name) - getattr(samples[0], name)) / max(len(samples) - 1, 1))


def _curve(samples: Sequence[Sample]) -> dict[str, list[float]]:
    """What the picture shows; of the seconds, the lower quartile since the point before."""
    step = -(-len(samples) // POINTS)
    last = [*range(step, len(samples) + 1, step)]
    curve = {one.name: [getattr(samples[end - 1], one.name) for end in last] for one in fields(Sample)}
    curve["seconds"] = [round(_quiet("seconds", samples[end - step : end]), 4) for end in last]
    return {"epoch": [float(end) for end in last], **curve}


def plot(result: Mapping[str, Any], file: Path) -> None:
    """All curves over the epochs."""
    from hemafast.pictures import save, subplots

    shown = {**DRIFTS, "tensorboard": ("tb/", "MB", 1e6), "logs": ("logs", "MB", 1e6)}
    figure, axes = subplots(len(shown), width=4, height=2.4, columns=3)
    for axis, (name, (title, unit, divisor)) in zip(axes, shown.items(), strict=True):
        axis.plot(result["curve"]["epoch"], np.array(result["curve"][name]) / divisor)
        axis.set(title=f"{title}, {unit}".removesuffix(", "), xlabel="epoch", ylim=(0, None))
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What the last soak measured."""
    result = results["soak"]
    tenth = result["epochs"] // 10
    header = f"at the end of an epoch | epochs {tenth + 1:,} to {2 * tenth:,} | last {tenth:,} | growth"
    rows = [_row(result, name) for name in DRIFTS]
    grown = result["bytes_an_epoch"]
    last = {name: result["curve"][name][-1] / 1e6 for name in grown}
    notes = [
        f"After {result['epochs']:,} epochs `tb/` holds {last['tensorboard']:,.1f} MB, and the logs {last['logs']:,.1f}"
        f" MB; an epoch of the last tenth added {grown['tensorboard'] / 1e3:,.1f} and {grown['logs'] / 1e3:,.1f} kB.",
        f"`{result['command']}`. {machine_line(result['machine'])}",
    ]
    if result["time_is_disturbed"]:
        cores = f"{result['other_cores']:.1f} cores"
        notes.insert(1, f"Other programs used {cores} meanwhile, so that the time of an epoch says nothing here.")
    return {"soak": table(header, rows, *notes)}


def _row(result: Mapping[str, Any], name: str) -> list[str]:
    (title, unit, divisor), found = DRIFTS[name], result["drifts"][name]
    values = [f"{found[when] / divisor:,.{1 if unit else 0}f} {unit}".strip() for when in ("early", "late")]
    judged = "disturbed" if name == "seconds" and result["time_is_disturbed"] else f"{found['drift']:+.1%}"
    return [title, *values, judged]


def main(
    epochs: Annotated[int, typer.Option(help="Epochs.", min=FEWEST)] = 2000,
    json_file: JsonFileOrNone = None,
    picture: Annotated[Path | None, typer.Option("--plot", help="Where to draw the curves, as PNG.")] = None,
) -> None:
    """Train so many short epochs, and exit with 1 if memory, files, threads or the time of an epoch have grown."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        result = soak(Path(folder), epochs)
    print_json(result, json_file)
    if picture is not None:
        plot(result, picture)
    for name in result["failed"]:
        typer.echo(f"{DRIFTS[name][0]} has grown by {result['drifts'][name]['drift']:.1%}", err=True)
    raise typer.Exit(int(bool(result["failed"])))


if __name__ == "__main__":
    typer.run(main)
