"""Seconds until a macro-F1 is reached: `hemafast train --preset fast` beside the reference pipeline's loop.

    python benchmarks/time_to_score.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/time_to_score.json \
        --plot benchmarks/results/time_to_score.png

Both sides see the split that `hemafast prepare` made, start from the same weights of the same network, and are scored
on the same validation images without augmentation, after each epoch. Seconds count from the start of the process,
imports included; preparation is reported separately. A reference run ends at the last threshold, or when its time
is over; the result marks the thresholds that it has not reached. Seeds take turns between the sides. The result is
written after each run, and a second call with more seeds adds to it, on the same processor.

`reference.py` is the other side, and says what it is. With `--reference-seconds 0` only our side runs.
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
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import pandas as pd
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json

from hemafast.config import train_config
from hemafast.data.dataset import Dataset, open_dataset
from hemafast.engine.machine import choose_machine
from hemafast.run_folder import LOG

THRESHOLDS = (0.60, 0.70, 0.75, 0.80, 0.85)
SIDES = ("hemafast", "reference")
_LINE = re.compile(r"^(\S+ \S+) INFO epoch \d+.*val macro-F1 ([\d.]+)", flags=re.MULTILINE)

Point = dict[str, float]
"""`seconds` from the start of the process, and the `f1_macro` of the validation that ended then."""


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


def run_reference(
    folders: Path, model: str, seed: int, seconds: float, *, target: float = THRESHOLDS[-1], answers: Path | None = None
) -> list[Point]:
    """Train with the reference's loop until the target or the end of its time; `answers` gets those of each epoch."""
    points = folders / "points.json"
    command = [sys.executable, str(Path(__file__).with_name("reference.py")), "--json", str(points)]
    for split in ("train", "val"):
        command += [f"--{split}", str(folders / split)]
    asked: dict[str, Any] = {"--model": model, "--seed": seed, "--seconds": seconds, "--target": target}
    if answers is not None:
        asked["--answers"] = answers
    subprocess.run([*command, *map(str, sum(asked.items(), ()))], check=True, capture_output=True)
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


def summary(runs: dict[str, list[list[Point]]], preparation: dict[str, float]) -> dict[str, Any]:
    """For each threshold, the median seconds of each side's seeds, and how many times longer the reference takes.

    A seed that has not reached a threshold counts as longer than any that has; where the median is such a seed, the
    ratio is a bound from below by the time that the seeds were given.
    """
    table: dict[str, Any] = {}
    for threshold in THRESHOLDS:
        row: dict[str, Any] = {}
        for side, seeds in runs.items():
            if not seeds:
                continue
            times = [reached(points, threshold) for points in seeds]
            middle = median(math.inf if seconds is None else seconds for seconds in times)
            row[side] = {
                "seconds": times,
                "median": middle if math.isfinite(middle) else None,
                "at_least": min(points[-1]["seconds"] for points in seeds if reached(points, threshold) is None)
                if not math.isfinite(middle)
                else None,
            }
        if len(row) == len(SIDES) and row["hemafast"]["median"] is not None:
            ours, theirs = row["hemafast"]["median"], row["reference"]["median"] or row["reference"]["at_least"]
            row["ratio"] = theirs / ours
            row["ratio_with_preparation"] = (theirs + preparation["reference"]) / (ours + preparation["hemafast"])
            row["ratio_is_bound"] = row["reference"]["median"] is None
        table[f"{threshold:.2f}"] = row
    return table


def sum_up(result: dict[str, Any]) -> None:
    """Put what the runs come to into the result."""
    points = {side: [run["points"] for run in runs] for side, runs in result["runs"].items()}
    result["thresholds"] = summary(points, result["preparation_seconds"])
    result["biggest_fall"] = {side: [biggest_fall(one) for one in seeds] for side, seeds in points.items()}


def plot(result: dict[str, Any], file: Path) -> None:
    """Macro-F1 against seconds, a line a seed."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    colours = {"hemafast": "#c1121f", "reference": "#3d5a80"}
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
    """Put what each side reads into `folder`: `prepared`, and class folders. Seconds that it takes by side."""
    seconds = {
        "hemafast": prepare(source, folder / "prepared", group_pattern),
        "reference": unpack(source / f"{domain}.zip", folder / "unpacked"),
    }
    class_folders(folder / "prepared", domain, folder)
    return seconds


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


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    plot_file: Annotated[Path | None, typer.Option("--plot", help="Draw macro-F1 against seconds to this PNG.")] = None,
    domain: Annotated[str, typer.Option(help="Domain to train on, and name of its archive.")] = "Acevedo_20",
    preset: Annotated[str, typer.Option(help="Our side's.")] = "fast",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each side has in the end.")] = 3,
    reference_seconds: Annotated[float, typer.Option(help="Time that a run of the reference is given.")] = 1800.0,
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Race to each threshold; with the archives of 3,000 images an hour or more on two cores."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        preparation = lay_out(source, domain, group_pattern, folder)
        result = conditions(folder / "prepared", domain, preset, seeds)
        result |= {"preparation_seconds": preparation, "runs": {side: [] for side in SIDES}}
        result["runs"] |= before(json_file, result["machine"]).get("runs", {})
        for seed in range(seeds):
            for side, runs in result["runs"].items():
                if seed < len(runs) or (side == "reference" and not reference_seconds):
                    continue
                if side == "hemafast":
                    command = [*result["ours"].split(), "--data", str(folder / "prepared"), "--seed", str(seed)]
                    runs.append({"seed": seed, "points": run_ours(command, folder / f"runs-{seed}")})
                else:
                    points = run_reference(folder, result["model"], seed, reference_seconds)
                    runs.append({"seed": seed, "given_seconds": reference_seconds, "points": points})
                typer.echo(f"{side}, seed {seed}: {runs[-1]['points']}", err=True)
                sum_up(result)
                write_json(result, json_file)
    if plot_file is not None:
        plot(result, plot_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Seconds to each macro-F1 of both sides, on two processors."""
    return {name: _table(results[name]) for name in ("time_to_score", "time_to_score_avx2")}


def _table(result: Mapping[str, Any]) -> str:
    preparation, images = result["preparation_seconds"], result["images"]
    ours, theirs = (result["runs"][side] for side in SIDES)
    rows = [
        [
            bar,
            *(_seconds(row[side]) for side in SIDES),
            _ratio(row, "ratio"),
            _ratio(row, "ratio_with_preparation"),
        ]
        for bar, row in result["thresholds"].items()
    ]
    epochs = [_epoch_seconds(runs) for runs in (ours, theirs)]
    note = (
        f"`{result['command']}`: `{result['ours']}` beside the reference's loop, {result['model']} from the same "
        f"ImageNet weights, {images['train']:,} training and {images['val']} validation images of "
        f"{result['domain']}, {result['classes']} classes, {len(ours)} seeds, alternating, median (each seed). "
        f"Seconds count from the start of the process. Preparation took {preparation['hemafast']:.0f} s, unpacking for "
        f"the reference {preparation['reference']:.1f} s. Runs end at {_ends(ours)} (hemafast) and {_ends(theirs)} "
        f"(reference). An epoch with its validation takes {epochs[0]:.0f} s (hemafast) and {epochs[1]:.0f} s "
        f"(reference), {epochs[1] / epochs[0]:.1f} times as long. The rest of each ratio comes from needing fewer "
        "epochs. After the first third, the largest drop of our macro-F1 between two validations is "
        f"{', '.join(f'{fall:.3f}' for fall in result['biggest_fall']['hemafast'])} (each seed). "
        f"{machine_line(result['machine'])}"
    )
    header = "macro-F1 | hemafast, seconds | reference, seconds | reference / hemafast | with preparation"
    return table(header, rows, note)


def _ends(runs: list[dict[str, Any]]) -> str:
    last = [run["points"][-1] for run in runs]
    return " / ".join(f"{point['f1_macro']:.3f} at {point['seconds']:.0f} s" for point in last)


def _epoch_seconds(runs: list[dict[str, Any]]) -> float:
    """Median seconds from one validation to the next, without the start of the process."""
    pairs = (pair for run in runs for pair in itertools.pairwise(run["points"]))
    return median(float(after["seconds"] - before["seconds"]) for before, after in pairs)


def _seconds(side: Mapping[str, Any]) -> str:
    each = " / ".join("-" if seconds is None else f"{seconds:.0f}" for seconds in side["seconds"])
    if side["median"] is None:
        return f"not within {side['at_least']:.0f} ({each})"
    return f"**{side['median']:.0f}** ({each})"


def _ratio(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return f"{'more than ' if row['ratio_is_bound'] else ''}**{row[name]:.1f}x**"


if __name__ == "__main__":
    typer.run(main)
