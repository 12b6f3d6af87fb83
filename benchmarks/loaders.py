"""Our input engine beside the loaders that people use: the same real images, the same output, in one interleaved run.

    python benchmarks/loaders.py --archive Acevedo_20.zip --json benchmarks/results/loaders.json \
        --plot benchmarks/results/loaders.png

Peers that hemafast itself does not need run in environments of their own, which peers.py makes from pinned
requirements. One that cannot be installed is named in the result with the reason, and the others race without it. FFCV
is compiled on the spot: it wants libopencv-dev, libturbojpeg0-dev, pkg-config and g++.

Each side is a process; all take turns, round after round. Refuses drawn archives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import peers
import typer
from loader_sides import WRITERS
from output import JsonFile, write_json

TASKS = {
    "JPEG, random resized crop and flip, to uint8": (
        "hemafast_files",
        "torchvision_v1",
        "torchvision_v2",
        "timm_loader",
        "dali_files",
        "webdataset",
        "spdl",
        "litdata",
        "ffcv_jpeg",
    ),
    "stored pixels of 256 px to uint8": (
        "hemafast_packed",
        "hemafast_packed_crop",
        "hemafast_packed_resized",
        "torch_packed",
        "dali_packed",
        "ffcv_raw",
        "ffcv_raw_crop",
        "ffcv_raw_crop_flip",
        "memory_copy",
    ),
    "the reference's augmentation, to normalised fp32": (
        "torchvision_reference",
        "hemafast_seed_files",
        "hemafast_seed_packed",
        "dali_two_operators",
        "dali_one_warp",
        "grid_sample",
    ),
}
NAMES = {
    "hemafast_files": "hemafast, files",
    "torchvision_v1": "torchvision v1 + Pillow",
    "torchvision_v2": "torchvision v2 on tensors",
    "timm_loader": "timm",
    "dali_files": "DALI as documented",
    "webdataset": "webdataset + torchvision v1",
    "spdl": "SPDL",
    "litdata": "litdata + torchvision v2",
    "ffcv_jpeg": "FFCV, JPEG",
    "hemafast_packed": "hemafast, packed: crop and eight symmetries",
    "hemafast_packed_crop": "hemafast, packed: crop alone",
    "hemafast_packed_resized": "hemafast, packed: random resized crop and flip",
    "torch_packed": "DataLoader on the memory map: crop and eight symmetries",
    "dali_packed": "DALI as documented: crop and flip",
    "ffcv_raw": "FFCV, raw: random resized crop and flip",
    "ffcv_raw_crop": "FFCV, raw: crop alone",
    "ffcv_raw_crop_flip": "FFCV, raw: crop and flip",
    "memory_copy": "(copying as many bytes in memory)",
    "torchvision_reference": "torchvision v1 + Pillow (the reference)",
    "hemafast_seed_files": "hemafast, files",
    "hemafast_seed_packed": "hemafast, packed",
    "dali_two_operators": "DALI's resize and warp, packed",
    "dali_one_warp": "one bilinear warp of DALI, packed",
    "grid_sample": "torch grid_sample, packed",
}
RATIOS = (
    *(("hemafast_files", peer) for peer in TASKS["JPEG, random resized crop and flip, to uint8"][1:]),
    ("hemafast_packed", "torchvision_reference"),
    ("hemafast_packed", "ffcv_raw_crop_flip"),
    ("hemafast_packed", "ffcv_raw_crop"),
    ("hemafast_packed_crop", "ffcv_raw_crop"),
    ("hemafast_packed", "torch_packed"),
    ("hemafast_packed", "dali_packed"),
    ("hemafast_packed", "memory_copy"),
    ("hemafast_packed_resized", "ffcv_raw"),
    ("hemafast_seed_files", "torchvision_reference"),
    ("hemafast_seed_packed", "torchvision_reference"),
)
LIBRARIES = ("torch", "torchvision", "timm", "nvidia-dali-cuda120", "numba", "numpy")
PEERS = {
    "webdataset": "webdataset",
    "spdl": "spdl",
    "litdata": "litdata",
    "ffcv_jpeg": "ffcv",
    "ffcv_raw": "ffcv",
    "ffcv_raw_crop": "ffcv",
    "ffcv_raw_crop_flip": "ffcv",
}
"""Sides that run in a peer's environment; all others run in ours."""

_SIDES = Path(__file__).with_name("loader_sides.py")

Measured = tuple[int, float, float]  # images, seconds, processor seconds


class Racer:
    """One side in its own process; idle but for the calls of `run`."""

    def __init__(self, python: str, side: str, data: Path, threads: int, batch: int) -> None:
        self._side = side
        command = [python, str(_SIDES), side, str(data), str(threads), str(batch)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Racer:
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:  # which closes its pipes and waits for it
            self._process.kill()

    def run(self, seconds: float) -> Measured:
        """Work for at least `seconds`, and measure."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{seconds}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"{self._side} has failed; what it said stands above.")
        images, wall, cpu = json.loads(line)
        return images, wall, cpu


def main(
    archive: Annotated[Path, typer.Option(help="A real archive of JPEG files.")],
    json_file: JsonFile,
    plot: Annotated[Path | None, typer.Option(help="Where to draw it.")] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.5, help="Least length of a measurement.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of each side.", show_default="the cores")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Images a batch.")] = 64,
    only: Annotated[list[str] | None, typer.Option(help="Sides to run; may be repeated.", show_default="all")] = None,
    environments: Annotated[Path, typer.Option(help="Where the environments of peers lie.")] = peers.ENVIRONMENTS,
) -> None:
    """Lay out the images for every side, let them race, and write what came of it."""
    threads = threads or len(os.sched_getaffinity(0))
    if unknown := set(only or ()) - NAMES.keys():
        sys.exit(f"There is no side {min(unknown)!r}; there are {', '.join(NAMES)}.")
    wanted = [side for task in TASKS.values() for side in task if only is None or side in only]
    pythons, unavailable = find_pythons(wanted, environments)
    raced = {PEERS[side]: python for side, python in pythons.items() if side in PEERS}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        images = _lay_out(archive, data)
        for peer in raced.keys() & WRITERS:
            command = [raced[peer], str(_SIDES), f"write-{peer}", str(data), str(threads), str(batch)]
            subprocess.run(command, check=True)
        measured = _race(pythons, data, rounds=rounds, seconds=seconds, threads=threads, batch=batch)
    result = {
        "archive": archive.name,
        "images": images,
        "batch": batch,
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "machine": _machine() | {peer: peers.pins(peer)[peer] for peer in raced},
        "peers": {peer: peers.pins(peer) for peer in raced},
        "unavailable": unavailable,
        "sides": {side: _summary(found) for side, found in measured.items()},
        "ratios": [
            {"of": ours, "to": theirs, **_ratio(measured[ours], measured[theirs])}
            for ours, theirs in RATIOS
            if ours in measured and theirs in measured
        ],
    }
    write_json(result, json_file)
    if plot is not None:
        draw(result, plot)


def find_pythons(sides: list[str], environments: Path) -> tuple[dict[str, str], dict[str, str]]:
    """The interpreters of all sides that can run, and why peers that cannot be installed are missing."""
    pythons: dict[str | None, str] = {None: sys.executable}
    unavailable: dict[str, str] = {}
    for peer in dict.fromkeys(PEERS[side] for side in sides if side in PEERS):
        print(f"environment of {peer}", file=sys.stderr, flush=True)
        try:
            pythons[peer] = str(peers.peer_python(peer, environments))
        except peers.PeerUnavailable as error:
            print(f"{error}; it is left out", file=sys.stderr, flush=True)
            unavailable[peer] = error.reason
    return {side: pythons[PEERS.get(side)] for side in sides if PEERS.get(side) in pythons}, unavailable


def _lay_out(archive: Path, data: Path) -> int:
    """Prepare the archive and write what the sides read. Returns the number of training images."""
    from hemafast.data.dataset import open_dataset

    source = data / "source"
    source.mkdir()
    (source / archive.name).symlink_to(archive.resolve())
    command = ["prepare", "--source", str(source), "--output", str(data / "prepared"), "--format", "webdataset"]
    # Whole images, but for the rim of those that are not square: what the other sides see.
    subprocess.run([sys.executable, "-m", "hemafast", *command, "--field-of-view", "whole", "--quiet"], check=True)
    dataset = open_dataset(data / "prepared")
    if dataset.info.drawn:
        sys.exit(f"{archive} holds drawn cells; no speed on them is worth keeping.")
    samples = dataset.samples("train")
    lines = [f"{path} {label}\n" for path, label in zip(samples.paths, samples.labels, strict=True)]
    (data / "files.txt").write_text("".join(lines), encoding="utf-8")
    np.save(data / "squares.npy", np.asarray(samples.packed))
    np.save(data / "labels.npy", samples.labels)
    return len(samples)


def _race(
    pythons: dict[str, str], data: Path, *, rounds: int, seconds: float, threads: int, batch: int
) -> dict[str, list[Measured]]:
    measured: dict[str, list[Measured]] = {side: [] for side in pythons}
    with ExitStack() as stack:
        racers = {}
        for side, python in pythons.items():
            racers[side] = stack.enter_context(Racer(python, side, data, threads, batch))
            racers[side].run(seconds)  # warm-up: imports, compilation, caches; not counted
        for number in range(rounds):
            for side, racer in racers.items():
                measured[side].append(racer.run(seconds))
                images, wall, _ = measured[side][-1]
                print(f"round {number + 1}/{rounds} {side}: {images / wall:,.0f} images/s", file=sys.stderr, flush=True)
    return measured


def _summary(rounds: list[Measured]) -> dict[str, Any]:
    return {
        "images_per_second": _spread([images / wall for images, wall, _ in rounds]),
        "images_per_cpu_second": _spread([images / cpu for images, _, cpu in rounds]),
        "rounds": rounds,
    }


def _ratio(ours: list[Measured], theirs: list[Measured]) -> dict[str, float]:
    """Our images/s over theirs, paired by round."""
    return _spread([a[0] / a[1] / (b[0] / b[1]) for a, b in zip(ours, theirs, strict=True)])


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _machine() -> dict[str, str]:
    from hemafast.engine.machine import machine_facts

    facts = machine_facts("cpu")
    for name in LIBRARIES:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            continue
    return facts


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the medians and spreads of all sides as bars, one panel a task, each on a scale of its own."""
    from matplotlib.figure import Figure

    groups = {task: [side for side in sides if side in result["sides"]] for task, sides in TASKS.items()}
    groups = {task: [side for side in sides if side != "memory_copy"] for task, sides in groups.items() if sides}
    heights = [len(sides) for sides in groups.values()]
    figure = Figure(figsize=(9, 1 + 0.33 * sum(heights) + 0.6 * len(heights)), layout="constrained")
    panels = figure.subplots(len(groups), 1, height_ratios=heights, squeeze=False)[:, 0]
    for panel, (task, sides) in zip(panels, groups.items(), strict=True):
        rates = [result["sides"][side]["images_per_second"] for side in sides]
        middle = [rate["median"] for rate in rates]
        spread = [
            [rate["median"] - rate["min"] for rate in rates],
            [rate["max"] - rate["median"] for rate in rates],
        ]
        colours = ["#b2182b" if side.startswith("hemafast") else "#9aa5b1" for side in sides]
        bars = panel.barh([NAMES[side] for side in sides], middle, xerr=spread, color=colours, error_kw={"lw": 1})
        panel.bar_label(bars, [f" {rate:,.0f}" for rate in middle], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(task, fontsize=10, loc="left")
        panel.tick_params(labelsize=8)
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("images/s, median of the rounds, with the least and the most", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    typer.run(main)
