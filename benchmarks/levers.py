"""The effect of each option of `--preset fast` at home: the race of `time_to_score.py`, one option changed at a time.

    python benchmarks/levers.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/levers.json

Every side trains on the same split from the same weights; seeds are the outer loop, so that a slow hour of the machine
falls on all sides. The unchanged preset has three seeds or more, which shows the luck of a seed. The result is written
after each run, and a later call adds the seeds and levers that are missing.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from time_to_score import Point, biggest_fall, prepare_real, reached, run_ours

from hemafast.config import train_config
from hemafast.engine.machine import choose_machine

PRESET = "fast"
AT_HOME = "--policy basic --sampler natural --no-standardize --no-quarter-turns"
"""What the preset is without its steps for other laboratories: those cost seconds, and no score at home tells their
worth (another_lab.py does). All levers are measured on it."""
LEVERS = {
    "as it is": "",
    "four stages frozen": "--freeze-stages 4",
    "six stages frozen": "--freeze-stages 6",
    "small images first": "--growing-from 96",
    "four epochs": "--epochs 4",
    "weights not averaged": "--ema 0",
    "half the images drawn evenly from the classes": "--sampler mixed:0.5",
    "no label smoothing": "--label-smoothing 0",
    "half the peak rate": "--lr 1.5e-3",
    "5/3 of the peak rate": "--lr 5e-3",
    "logits adjusted by the frequency of the class": "--loss logit-adjusted",
    "layer-wise decay of the rate": "--layer-decay 0.8",
    "frozen batch norm": "--freeze-norm --clip-grad 1",
    "stochastic depth": "--drop-path 0.1",
    "no symmetries": "--symmetry none",
    "batches of 64 at 4/3 of the rate": "--batch-size 64 --lr 4e-3",
    "weights averaged over more updates": "--ema 0.98",
    "no stage frozen": "--freeze-stages 0",
    "small images first, larger in the end": "--growing-from 96,128 --image-size 160",
}
"""Options added to AT_HOME. benchmarks/README.md lists what has no option, with the reason."""

BARS = (0.75, 0.80, 0.85)
"""The result has the seconds to each of these macro-F1."""

SPREAD = 3
"""Least number of seeds of the unchanged preset: a difference within their range may be luck."""


def area(points: list[Point], seconds: float) -> float:
    """Mean macro-F1 over the first `seconds`, of the best model so far: 0 before the first validation."""
    total, now, best = 0.0, 0.0, 0.0
    for point in (*points, {"seconds": seconds, "f1_macro": 0.0}):
        until = min(point["seconds"], seconds)
        total, now = total + best * (until - now), until
        best = max(best, point["f1_macro"])
    return total / seconds


def summary(runs: dict[str, list[Point]], seconds: float, thresholds: tuple[float, ...]) -> dict[str, Any]:
    """Of a lever's runs by seed: medians of the seconds to each threshold (None if most miss it), the best and last
    macro-F1, the area and the seconds of the whole; the biggest fall of any between two validations after the first
    third."""
    seeds = list(runs.values())
    areas, lasts = [area(points, seconds) for points in seeds], [points[-1]["f1_macro"] for points in seeds]

    def middle(found: list[float | None]) -> float | None:
        known = sorted(value for value in found if value is not None)
        return known[len(found) // 2] if len(known) > len(found) // 2 else None

    return {
        "seeds": len(seeds),
        "seconds_to": {f"{bar:.2f}": middle([reached(points, bar) for points in seeds]) for bar in thresholds},
        "best": median(max(point["f1_macro"] for point in points) for points in seeds),
        "last": median(lasts),
        "lasts": lasts,
        "area": median(areas),
        "areas": areas,
        "fall": max(biggest_fall(points) for points in seeds),
        "seconds": median(points[-1]["seconds"] for points in seeds),
    }


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    domain: Annotated[str, typer.Option(help="Domain to train on.")] = "Acevedo_20",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each lever has in the end.")] = 1,
    seconds: Annotated[float, typer.Option(help="Over which macro-F1 is averaged.")] = 120.0,
    lever: Annotated[
        list[str] | None, typer.Option(help="Run only this lever beside the unchanged preset; may be repeated.")
    ] = None,
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Train with each lever; one to four minutes a run on two cores."""
    if unknown := set(lever or ()) - set(LEVERS):
        raise typer.BadParameter(f"There is no lever {sorted(unknown)}. Choose from: {', '.join(LEVERS)}.")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = folder / "prepared"
        dataset = prepare_real(source, prepared, group_pattern, domain)
        result: dict[str, Any] = {
            "command": f"python benchmarks/levers.py --domain {domain} --seconds {seconds:g}",
            "preset": f"{PRESET} {AT_HOME}",
            "machine": choose_machine(device="cpu", amp="auto", compiled="off").facts,
            "model": train_config(PRESET).model,
            "domain": domain,
            "images": {split: int(dataset.counts(split).sum()) for split in ("train", "val")},
            "seconds": seconds,
            "runs": {name: {} for name in LEVERS},
        }
        result["runs"] |= before(json_file, result["machine"]).get("runs", {})
        base = ["hemafast", "train", "--preset", PRESET, *AT_HOME.split(), "--domains", domain]
        chosen = [name for name, options in LEVERS.items() if not lever or not options or name in lever]
        missing = [
            (seed, name)
            for seed in range(max(seeds, SPREAD))
            for name in chosen
            if (seed < seeds or not LEVERS[name]) and str(seed) not in result["runs"][name]
        ]
        for number, (seed, name) in enumerate(missing):
            command = [*base, *shlex.split(LEVERS[name]), "--data", str(prepared), "--seed", str(seed)]
            result["runs"][name][str(seed)] = run_ours(command, folder / f"runs-{number}")
            typer.echo(f"{name}, seed {seed}: {result['runs'][name][str(seed)]}", err=True)
            done = {name: runs for name, runs in result["runs"].items() if runs}
            result["levers"] = {
                name: {"options": LEVERS[name], **summary(runs, seconds, BARS)} for name, runs in done.items()
            }
            write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What a change of one lever makes of the preset."""
    result = results["levers"]
    plain, images = next(iter(result["levers"].values())), result["images"]
    rows = [
        [
            "the preset, unchanged" if lever is plain else name,
            f"`{lever['options']}`" if lever["options"] else "",
            str(lever["seeds"]),
            *("never" if seconds is None else f"{seconds:.0f}" for seconds in lever["seconds_to"].values()),
            _seeds(lever["areas"]),
            "" if lever is plain else f"{lever['area'] - plain['area']:+.3f}",
            _seeds(lever["lasts"]),
            f"{lever['fall']:.3f}",
            f"{lever['seconds']:.0f}",
        ]
        for name, lever in result["levers"].items()
    ]
    note = (
        f"`{result['command']}` runs `hemafast train --preset {result['preset']}`: {result['model']}, "
        f"{images['train']:,} training and {images['val']} validation images of "
        f"{result['domain']}; medians of the seeds (min to max). `never`: most seeds do not reach it. The "
        f"area is the mean macro-F1 of the best model so far over the first {result['seconds']:.0f} s. The biggest "
        f"fall is the largest drop between two validations after the first third, in any seed. "
        f"{machine_line(result['machine'])}"
    )
    bars = " | ".join(f"to {bar}, s" for bar in plain["seconds_to"])
    header = f"`--preset {PRESET}` at home | options | seeds | {bars} | area | gain | last | biggest fall | seconds"
    return {"levers": table(header, rows, note)}


def _seeds(values: list[float]) -> str:
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{median(values):.3f}{several}"


if __name__ == "__main__":
    typer.run(main)
