"""Seconds until a macro-F1 is reached: `hemafast train --preset fast` beside loops that others write.

    python benchmarks/time_to_score.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/time_to_score.json \
        --plot benchmarks/results/time_to_score.png

All sides see the split that `hemafast prepare` made, start from the same weights of the same network, and are scored
on the same validation images without augmentation, after each epoch. Seconds count from the start of the process,
imports included; preparation is reported separately. The loop of the reference ends at the last threshold, or when its
time is over, the others with their schedules; the result marks the thresholds that a side has not reached. Seeds take
turns between the sides. The result is written after each run, and a second call with more seeds or sides adds to it,
on the same processor.

`timm_loop.py`, `fastai_loop.py` and `reference.py` are the other sides, and say what they are.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pandas as pd
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from peers import PeerUnavailable, peer_python

from hemafast.config import train_config
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.engine.machine import choose_machine
from hemafast.run_folder import LOG
from hemafast.weights import load_initial_weights

THRESHOLDS = (0.60, 0.70, 0.75, 0.80, 0.85)
OURS = "hemafast"
_LINE = re.compile(r"^(\S+ \S+) INFO epoch \d+.*val macro-F1 ([\d.]+)", flags=re.MULTILINE)

Point = dict[str, float]
"""`seconds` from the start of the process, and the `f1_macro` of the validation that ended then."""


@dataclass(frozen=True)
class Loop:
    """A script beside this one that trains on class folders, and the peer in whose environment it runs."""

    script: str
    peer: str | None = None

    def python(self) -> str:
        """Its interpreter. Raises PeerUnavailable."""
        return str(peer_python(self.peer)) if self.peer else sys.executable


REFERENCE = Loop("reference.py")
LOOPS = {"timm loop": Loop("timm_loop.py"), "fastai": Loop("fastai_loop.py", peer="fastai"), "reference": REFERENCE}


def class_folders(prepared: Path, domain: str, folder: Path) -> None:
    """Lay out a domain's accepted images as ImageFolder wants them: links in folder/SPLIT/CLASS."""
    manifest = pd.read_parquet(prepared / "manifest.parquet")
    ours = manifest[(manifest["domain"] == domain) & manifest["split"].isin(["train", "val"])]
    for path, label, split in zip(ours["path"], ours["label"], ours["split"], strict=True):
        place = folder / split / label
        place.mkdir(parents=True, exist_ok=True)
        (place / Path(path).name).symlink_to((prepared / path).absolute())


def run_ours(command: list[str], output: Path) -> list[Point]:
    """Train with hemafast; the points as its log has them."""
    started = time.time()
    subprocess.run(
        [sys.executable, "-m", *command, "--output", str(output), "--quiet"], check=True, capture_output=True
    )
    (folder,) = output.glob("2*")
    told = _LINE.findall((folder / LOG).read_text(encoding="utf-8"))
    ends = [datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f").timestamp() for stamp, _ in told]
    return [{"seconds": end - started, "f1_macro": float(f1)} for end, (_, f1) in zip(ends, told, strict=True)]


def run_loop(loop: Loop, folders: Path, **asked: Any) -> list[Point]:
    """Train with a loop on `folders`/train; `asked` are its options. Raises PeerUnavailable."""
    points = folders / "points.json"
    command = [loop.python(), str(Path(__file__).with_name(loop.script)), "--json", str(points)]
    for name, value in {"train": folders / "train", "val": folders / "val", **asked}.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{loop.script} failed: {done.stderr}")
    found: list[Point] = json.loads(points.read_text(encoding="utf-8"))
    points.unlink()
    return found


def reached(points: list[Point], threshold: float) -> float | None:
    """Seconds of the first point at or above a threshold, or None."""
    return next((point["seconds"] for point in points if point["f1_macro"] >= threshold), None)


def biggest_fall(points: list[Point]) -> float:
    """The largest drop of macro-F1 from one validation to the next, after the first third of the seconds."""
    third = points[-1]["seconds"] / 3
    return max(
        (
            before["f1_macro"] - after["f1_macro"]
            for before, after in itertools.pairwise(points)
            if after["seconds"] >= third and after["f1_macro"] < before["f1_macro"]
        ),
        default=0.0,
    )


def summary(runs: Mapping[str, list[list[Point]]], preparation: Mapping[str, float]) -> dict[str, Any]:
    """For each threshold, the median seconds of each side's seeds, and how many times longer than ours it takes.

    A seed that has not reached a threshold counts as longer than any that has; where the median is such a seed, the
    ratio is a bound from below by the time that the seeds took.
    """
    ran = {side: seeds for side, seeds in runs.items() if seeds}
    table: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        row = {side: _seconds_to(threshold, seeds) for side, seeds in ran.items()}
        ours = row[OURS]["median"] if OURS in row else None
        for side, found in row.items():
            if side != OURS and ours is not None:
                theirs = found["median"] or found["at_least"]
                found["ratio"] = theirs / ours
                found["ratio_with_preparation"] = (theirs + preparation["others"]) / (ours + preparation[OURS])
        table[f"{threshold:.2f}"] = row
    return table


def _seconds_to(threshold: float, seeds: list[list[Point]]) -> dict[str, Any]:
    times = [reached(points, threshold) for points in seeds]
    middle = median(math.inf if seconds is None else seconds for seconds in times)
    if math.isfinite(middle):
        return {"seconds": times, "median": middle, "at_least": None}
    missed = [points[-1]["seconds"] for points, seconds in zip(seeds, times, strict=True) if seconds is None]
    return {"seconds": times, "median": None, "at_least": min(missed)}


def sum_up(result: dict[str, Any]) -> None:
    """Put what the runs come to into the result."""
    points = _points(result)
    result["thresholds"] = summary(points, result["preparation_seconds"])
    result["biggest_fall"] = {side: [biggest_fall(one) for one in seeds] for side, seeds in points.items()}


def _points(result: Mapping[str, Any]) -> dict[str, list[list[Point]]]:
    return {side: [run["points"] for run in runs] for side, runs in result["runs"].items()}


def plot(result: dict[str, Any], file: Path) -> None:
    """Macro-F1 against seconds, a line a seed."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    colours = {OURS: "#c1121f", "timm loop": "#e09f3e", "fastai": "#588157", "reference": "#3d5a80"}
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for side, runs in result["runs"].items():
        for number, run in enumerate(runs):
            seconds, scores = zip(*((point["seconds"], point["f1_macro"]) for point in run["points"]), strict=True)
            label = f"{side}, {len(runs)} seeds" if number == 0 else None
            axes.plot(seconds, scores, marker="o", markersize=4, color=colours[side], label=label, alpha=0.8)
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color="grey", linewidth=0.6, linestyle=":")
    axes.set(xscale="log", xlabel="seconds from the start of the process", ylabel="macro-F1 on validation", ylim=(0, 1))
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(f"{result['model']}, {result['domain']}: {result['images']['train']:,} training images", loc="left")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    plt.close(figure)


def prepare(source: Path, output: Path, group_pattern: str | None) -> float:
    """`hemafast prepare`; its seconds."""
    groups = ["--group-pattern", group_pattern] if group_pattern else []
    command = [sys.executable, "-m", "hemafast", "prepare", "--source", str(source), "--output", str(output), *groups]
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def prepare_real(source: Path, output: Path, group_pattern: str | None, *domains: str) -> Dataset:
    """`hemafast prepare`, and these domains of what it made, or all. Drawn cells will not do: the process ends."""
    prepare(source, output, group_pattern)
    dataset = open_dataset(output, domains=domains or None)
    if dataset.info.drawn:
        sys.exit(f"{source} holds drawn cells; what is measured on them is not worth keeping.")
    return dataset


def unpack(archive: Path, folder: Path) -> float:
    """What the reference's user does instead of preparing; its seconds."""
    started = time.perf_counter()
    shutil.unpack_archive(archive, folder)
    return time.perf_counter() - started


def lay_out(source: Path, domain: str, group_pattern: str | None, folder: Path) -> dict[str, float]:
    """Put what each side reads into `folder`: `prepared`, and class folders. Seconds that it takes us and others."""
    seconds = {
        OURS: prepare(source, folder / "prepared", group_pattern),
        "others": unpack(source / f"{domain}.zip", folder / "unpacked"),
    }
    class_folders(folder / "prepared", domain, folder)
    return seconds


def write_weights(model: str, file: Path) -> None:
    """The first weights of all sides, as a file that timm reads."""
    import timm
    import torch

    network = timm.create_model(model)
    load_initial_weights(network, model, pretrained="yes", file=None)
    torch.save(network.state_dict(), file)


def conditions(prepared: Path, domain: str, preset: str, seeds: int) -> dict[str, Any]:
    """What the result says of the race besides its runs. No drawn cells are raced on: the process ends."""
    dataset = open_dataset(prepared, domains=(domain,))
    if dataset.info.drawn:
        sys.exit("These are drawn cells; no time to a score on them is worth keeping.")
    return {
        "command": f"python benchmarks/time_to_score.py --domain {domain} --seeds {seeds}",
        "ours": f"hemafast train --preset {preset} --domains {domain}",
        "machine": choose_machine(device="cpu", amp="auto", compiled="off").facts,
        "model": train_config(preset).model,
        "domain": domain,
        "images": {split: int(dataset.counts(split).sum()) for split in ("train", "val")},
        "classes": sum(bool(count) for count in dataset.counts("val")),
    }


def run_side(side: str, seed: int, folder: Path, result: Mapping[str, Any], reference_seconds: float) -> list[Point]:
    """Train once. Raises PeerUnavailable."""
    if side == OURS:
        command = [*result["ours"].split(), "--data", str(folder / "prepared"), "--seed", str(seed)]
        return run_ours(command, folder / f"runs-{seed}")
    asked: dict[str, Any] = {"model": result["model"], "seed": seed}
    if side == "reference":
        asked |= {"seconds": reference_seconds, "target": THRESHOLDS[-1]}
    else:
        asked["weights"] = folder / "weights.pth"
    return run_loop(LOOPS[side], folder, **asked)


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw macro-F1 against seconds to this PNG.")] = None,
    domain: Annotated[str, typer.Option(help="Domain to train on, and name of its archive.")] = "Acevedo_20",
    preset: Annotated[str, typer.Option(help="Our side's.")] = "fast",
    sides: Annotated[str, typer.Option(help="Who runs, with commas between.")] = ",".join((OURS, *LOOPS)),
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each side has in the end.")] = 3,
    reference_seconds: Annotated[float, typer.Option(help="Time that a run of the reference is given.")] = 1000.0,
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Race to each threshold; with the archives of 3,000 images an hour or more on two cores."""
    chosen = sides.split(",")
    if unknown := set(chosen) - {OURS, *LOOPS}:
        raise typer.BadParameter(f"There is no side {min(unknown)!r}; there are {', '.join((OURS, *LOOPS))}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preparation = lay_out(source, domain, group_pattern, folder)
        result = conditions(folder / "prepared", domain, preset, seeds)
        write_weights(result["model"], folder / "weights.pth")
        earlier = before(json_file, result["machine"]).get("runs", {})
        runs = {side: earlier.get(side, []) for side in (OURS, *LOOPS)}
        result |= {"preparation_seconds": preparation, "runs": runs}
        for seed, side in itertools.product(range(seeds), chosen):
            if seed < len(runs[side]):
                continue
            try:
                points = run_side(side, seed, folder, result, reference_seconds)
            except PeerUnavailable as error:
                typer.echo(f"{error}; the race goes on without it", err=True)
                continue
            runs[side].append({"seed": seed, "points": points})
            typer.echo(f"{side}, seed {seed}: {points}", err=True)
            sum_up(result)
            write_json(result, json_file)
    if plot_file is not None:
        plot(result, plot_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Seconds to each macro-F1 of all sides, on two processors, and the medians of the first alone."""
    whole = {name: _table(results[name]) for name in ("time_to_score", "time_to_score_avx2")}
    return whole | {"time_to_score_short": _short_table(results["time_to_score"])}


def _short_table(result: Mapping[str, Any]) -> str:
    points = {side: seeds for side, seeds in _points(result).items() if seeds}
    thresholds = summary(points, result["preparation_seconds"])
    rows = [[bar, *(_short_cell(row[side]) for side in points)] for bar, row in thresholds.items()]
    seeds = ", ".join(f"{side} {len(runs)}" for side, runs in points.items())
    note = f"Median seconds of the process, imports included; seeds: {seeds}. {machine_line(result['machine'])}"
    return table(" | ".join(["macro-F1", *points]), rows, note)


def _short_cell(found: Mapping[str, Any]) -> str:
    if found["median"] is None:
        return f"not within {found['at_least']:.0f}"
    ratio = f", {found['ratio']:.1f}x" if "ratio" in found else ""
    return f"**{found['median']:.0f}**{ratio}"


def _table(result: Mapping[str, Any]) -> str:
    preparation, images = result["preparation_seconds"], result["images"]
    points = {side: seeds for side, seeds in _points(result).items() if seeds}
    thresholds = summary(points, preparation)
    rows = [[bar, *(_cell(row[side]) for side in points)] for bar, row in thresholds.items()]
    falls = ", ".join(f"{biggest_fall(seed):.3f}" for seed in points[OURS])
    ends = "; ".join(f"{_ends(seeds)} ({side})" for side, seeds in points.items())
    epochs = ", ".join(f"{_epoch_seconds(seeds):.0f} s ({side})" for side, seeds in points.items())
    note = (
        f"Seconds, median (each seed), and how many times as long as hemafast; in brackets with preparation. "
        f"`{result['command']}`: `{result['ours']}` beside loops that others write, {result['model']} from the same "
        f"ImageNet weights, {images['train']:,} training and {images['val']} validation images of "
        f"{result['domain']}, {result['classes']} classes, {len(points[OURS])} seeds, alternating. "
        f"Seconds count from the start of the process. Preparation took {preparation[OURS]:.0f} s, unpacking for "
        f"the others {preparation['others']:.1f} s. Runs end at {ends}. An epoch with its validation takes {epochs}. "
        f"After the first third, the largest drop of our macro-F1 between two validations is {falls} (each seed). "
        f"{machine_line(result['machine'])}"
    )
    return table(" | ".join(["macro-F1", *points]), rows, note)


def _ends(seeds: list[list[Point]]) -> str:
    return " / ".join(f"{points[-1]['f1_macro']:.3f} at {points[-1]['seconds']:.0f} s" for points in seeds)


def _epoch_seconds(seeds: list[list[Point]]) -> float:
    """Median seconds from one validation to the next, without the start of the process."""
    pairs = (pair for points in seeds for pair in itertools.pairwise(points))
    return median(float(after["seconds"] - before["seconds"]) for before, after in pairs)


def _cell(found: Mapping[str, Any]) -> str:
    each = " / ".join("-" if seconds is None else f"{seconds:.0f}" for seconds in found["seconds"])
    if found["median"] is None:
        text, more = f"not within {found['at_least']:.0f}", "more than "
    else:
        text, more = f"**{found['median']:.0f}** ({each})", ""
    if "ratio" not in found:
        return text
    return f"{text}, {more}**{found['ratio']:.1f}x** ({found['ratio_with_preparation']:.1f}x)"


if __name__ == "__main__":
    typer.run(main)
