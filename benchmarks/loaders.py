"""Our input engine beside the loaders that people use: same real images, same output, interleaved rounds.

    python benchmarks/loaders.py --archive Acevedo_20.zip --json benchmarks/results/loaders.json \
        --plot benchmarks/results/loaders.png

loader_sides.py has the sides. Each is a process, and all take turns. Peers run in environments of their own, which
peers.py makes from pinned requirements. A peer that cannot be installed is named in the result with the reason, and
the others race without it. FFCV is compiled on the spot: it needs libopencv-dev, libturbojpeg0-dev, pkg-config and g++.
Refuses drawn archives.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import numpy as np
import peers
import typer
from loader_sides import SIDES, TASKS, WRITERS
from output import JsonFile, machine_line, ranged, table, times, write_json

JPEG, *_ = TASKS
CLAIMS = {
    "crop and eight symmetries from packed pixels against the reference's loader from JPEG": (
        "hemafast_packed",
        "torchvision_reference",
    ),
    "the reference's augmentation from JPEG, against the reference": ("hemafast_seed_files", "torchvision_reference"),
    "the reference's augmentation from packed pixels, against the reference": (
        "hemafast_seed_packed",
        "torchvision_reference",
    ),
    "random resized crop and flip from stored pixels, against FFCV": ("hemafast_packed_resized", "ffcv_raw"),
    "crop alone from stored pixels, against FFCV": ("hemafast_packed_crop", "ffcv_raw_crop"),
    "crop and eight symmetries, as a share of copying as many bytes in memory": ("hemafast_packed", "memory_copy"),
}
"""Ratios that the page lists."""
RATIOS = (
    *(("hemafast_files", peer) for peer in TASKS[JPEG] if peer != "hemafast_files"),
    *(("hemafast_packed", peer) for peer in ("ffcv_raw_crop_flip", "ffcv_raw_crop", "torch_packed", "dali_packed")),
    *CLAIMS.values(),
)
VERSIONS = ("torchvision", "timm", "webdataset", "spdl", "litdata", "ffcv")
"""Libraries whose versions the page names, besides torch and DALI."""
LIBRARIES = ("torch", "torchvision", "timm", "nvidia-dali-cuda120", "numba", "numpy")

_SCRIPT = Path(__file__).with_name("loader_sides.py")

Measured = tuple[int, float, float]  # images, seconds, processor seconds


class Racer:
    """One side in its own process, idle except during `run`."""

    def __init__(self, python: str, side: str, data: Path, threads: int, batch: int) -> None:
        self._side = side
        command = [python, str(_SCRIPT), side, str(data), str(threads), str(batch)]
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
            sys.exit(f"{self._side} failed. Its output is above.")
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
    """Lay out the images for every side, let them race, and write the result."""
    threads = threads or len(os.sched_getaffinity(0))
    if unknown := set(only or ()) - SIDES.keys():
        sys.exit(f"There is no side {min(unknown)!r}. Choose from {', '.join(SIDES)}.")
    wanted = [side for side in SIDES if only is None or side in only]
    pythons, unavailable = find_pythons(wanted, environments)
    raced = {peer: python for side, python in pythons.items() if (peer := SIDES[side].peer)}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        images = _lay_out(archive, data)
        for peer in raced.keys() & WRITERS:
            command = [raced[peer], str(_SCRIPT), f"write-{peer}", str(data), str(threads), str(batch)]
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
    """The interpreters of all sides that can run, and why the other peers cannot be installed."""
    pythons: dict[str | None, str] = {None: sys.executable}
    unavailable: dict[str, str] = {}
    for peer in dict.fromkeys(peer for side in sides if (peer := SIDES[side].peer)):
        print(f"environment of {peer}", file=sys.stderr, flush=True)
        try:
            pythons[peer] = str(peers.peer_python(peer, environments))
        except peers.PeerUnavailable as error:
            print(f"{error}; the race runs without it", file=sys.stderr, flush=True)
            unavailable[peer] = error.reason
    return {side: pythons[SIDES[side].peer] for side in sides if SIDES[side].peer in pythons}, unavailable


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
    """Draw the medians and ranges of all sides as bars, one panel per task, each on its own scale."""
    from matplotlib.figure import Figure

    groups = {task: [side for side in sides if side != "memory_copy"] for task, sides in _raced(result).items()}
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
        colours = ["#b2182b" if SIDES[side].ours else "#9aa5b1" for side in sides]
        bars = panel.barh([SIDES[side].title for side in sides], middle, xerr=spread, color=colours, error_kw={"lw": 1})
        panel.bar_label(bars, [f" {rate:,.0f}" for rate in middle], fontsize=8)
        panel.invert_yaxis()
        panel.set_title(task, fontsize=10, loc="left")
        panel.tick_params(labelsize=8)
        panel.margins(x=0.12)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("images/s, median of the rounds (min to max)", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """All sides by task, and our loader against its best peer at each task."""
    result = results["loaders"]
    ratios = {(ratio["of"], ratio["to"]): ratio for ratio in result["ratios"]}
    return {"loaders": _long_table(result, ratios), "loaders_short": _short_table(result, ratios)}


Ratios = Mapping[tuple[str, str], Mapping[str, float]]


def _long_table(result: Mapping[str, Any], ratios: Ratios) -> str:
    rows = []
    for task, sides in _raced(result).items():
        rows.append([f"**{task}**", "", "", ""])
        ours = next(side for side in sides if SIDES[side].ours)
        for side in sides:
            rates, ratio = result["sides"][side], ratios.get((ours, side))
            against = "" if ratio is None else f"{ratio['median']:.1f}x ({ratio['min']:.1f} to {ratio['max']:.1f})"
            each = [ranged(rates[unit]) for unit in ("images_per_second", "images_per_cpu_second")]
            rows.append([SIDES[side].title, *each, against])
    versions = [f"{name} {result['machine'][name]}" for name in VERSIONS if name in result["machine"]]
    note = (
        f"Views of 224 px in batches of {result['batch']}, {result['threads']} threads or workers each, "
        f"{result['images']:,} real images of {result['archive']}, {result['rounds']} interleaved rounds, median "
        f"(min to max). {machine_line(result['machine']).rstrip('.')}, {', '.join(versions)}. "
        "The last column compares our first row of each part with the others, paired by round."
    )
    claims = [f"- {text}: {times(ratio)}" for text, pair in CLAIMS.items() if (ratio := ratios.get(pair))]
    header = "| images/s | images per CPU-second | ours is faster by"
    return table(header, rows, note, "\n".join(claims))


def _short_table(result: Mapping[str, Any], ratios: Ratios) -> str:
    pairs = (
        ("JPEG, random resized crop and flip", "hemafast_files", _best_from_jpeg(result)),
        ("stored pixels, random resized crop and flip", "hemafast_packed_resized", "ffcv_raw"),
        ("stored pixels, crop alone", "hemafast_packed_crop", "ffcv_raw_crop"),
        ("stored pixels, crop and symmetries (FFCV: one flip)", "hemafast_packed", "ffcv_raw_crop_flip"),
        ("the reference's augmentation, from JPEG", "hemafast_seed_files", "torchvision_reference"),
        ("the reference's augmentation, from stored pixels", "hemafast_seed_packed", "torchvision_reference"),
    )
    rates = {side: ranged(found["images_per_second"]) for side, found in result["sides"].items()}
    rows = [
        [task, rates[ours], SIDES[theirs].title.partition(":")[0], rates[theirs], times(ratio, 1)]
        for task, ours, theirs in pairs
        if (ratio := ratios.get((ours, theirs)))
    ]
    note = (
        f"`benchmarks/loaders.py`, {result['rounds']} interleaved rounds, median (min to max). The results have all "
        f"{len(result['sides'])} loaders."
    )
    return table("views of 224 px | hemafast, images/s | best peer | images/s |", rows, note)


def _raced(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """The sides that took part, by task; without tasks that none took part in."""
    groups = {task: [side for side in sides if side in result["sides"]] for task, sides in TASKS.items()}
    return {task: sides for task, sides in groups.items() if sides}


def _best_from_jpeg(result: Mapping[str, Any]) -> str:
    """The fastest peer."""
    peers_there = [side for side in TASKS[JPEG] if side in result["sides"] and not SIDES[side].ours]
    return max(peers_there, key=lambda side: float(result["sides"][side]["images_per_second"]["median"]))


if __name__ == "__main__":
    typer.run(main)
