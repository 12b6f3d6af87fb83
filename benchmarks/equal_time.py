"""The best macro-F1 within the same seconds: `hemafast train --preset best` beside the reference pipeline's loop.

    python benchmarks/equal_time.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/equal_time.json

Domain by domain, both sides see the split that `hemafast prepare` made, start from the same weights of the same
network, and have the same seconds from the start of the process; ours within a `--time-budget`, evaluation and report
included. Each side is judged by its best epoch, without augmentation. Seeds take turns between the sides, the result
is written after each of them, and a second call with more seeds adds to it.

`reference.py` is the other side, and says what it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from time_to_score import REFERENCE, class_folders, prepare_real, run_loop

from hemafast.engine.machine import choose_machine
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import confusions, count_scores

SIDES = ("hemafast", "reference")
BUDGETS = {"Acevedo_20": 900.0, "Matek_19": 120.0}
"""Seconds that each side has. Few images need few of them: the smaller archive is seen as often as the larger."""

Answers = dict[str, str]
"""Class by file name."""


def run_ours(
    prepared: Path, domain: str, command: list[str], seed: int, seconds: float, output: Path
) -> tuple[Answers, float]:
    """Train within `seconds`; return the best epoch's predictions of the validation images, and the seconds it took."""
    asked = ["--domains", domain, "--data", str(prepared), "--seed", str(seed), "--time-budget", f"{seconds:.0f}"]
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", *command, *asked, "--output", str(output), "--quiet"], check=True, capture_output=True
    )
    taken = time.perf_counter() - started
    (folder,) = output.glob("2*")
    table = pd.read_csv(folder / "predictions.csv")
    table = table[table["domain"] == domain]
    return {Path(image).name: label for image, label in zip(table["image"], table["predicted"], strict=True)}, taken


def best_within(folders: Path, model: str, seed: int, seconds: float) -> Answers:
    """Train with the reference's loop; return the predictions of the best epoch that ended within `seconds`."""
    file = folders / "answers.json"
    run_loop(REFERENCE, folders, model=model, seed=seed, seconds=seconds, target=1.0, answers=file)
    epochs: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    file.unlink()
    within = [epoch for epoch in epochs if epoch["seconds"] <= seconds]
    if not within:
        sys.exit(f"The reference ends no epoch in {seconds:.0f} s.")
    found: Answers = max(within, key=lambda epoch: float(epoch["f1_macro"]))["answers"]
    return found


def judged(actual: Answers, runs: dict[str, list[Answers]]) -> dict[str, Any]:
    """Macro-F1 of each side and what ours is ahead by, over all seeds that both have, with 95 % intervals.

    A resample of the images is the same for all runs, and a score in it is the mean over the seeds: intervals hold the
    luck of the images. That of the training is in `seeds`.
    """
    answered = {label for seeds in runs.values() for run in seeds for label in run.values()}
    classes = sorted(answered.union(actual.values()))
    files = sorted(actual)
    labels = _indices(classes, actual, files)
    count = min(len(seeds) for seeds in runs.values())
    scores = {
        side: np.stack([_resampled(labels, _indices(classes, run, files), len(classes)) for run in seeds[:count]])
        for side, seeds in runs.items()
    }
    ours, theirs = (scores[side].mean(axis=0) for side in SIDES)
    return {
        "images": len(files),
        "classes": len(set(actual.values())),
        "seeds": {side: found[:, 0].tolist() for side, found in scores.items()},
        "macro_f1": {
            side: {"mean": float(mean[0]), "ci95": interval(mean).tolist()}
            for side, mean in zip(SIDES, (ours, theirs), strict=True)
        },
        "ahead": {"mean": float(ours[0] - theirs[0]), "ci95": interval(ours - theirs).tolist()},
    }


def _indices(classes: list[str], answers: Answers, files: list[str]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array([classes.index(answers[file]) for file in files], dtype=np.int64)


def _resampled(labels: Any, predicted: Any, classes: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Macro-F1 of all images, then of each resample."""
    parts = [
        count_scores(confusions(labels, predicted, weights, classes))["macro_f1"] for weights in resample(len(labels))
    ]
    return np.concatenate(parts).astype(np.float64)


def truth(prepared: Path, domain: str) -> Answers:
    """The labels of the validation images."""
    manifest = pd.read_parquet(prepared / "manifest.parquet")
    ours = manifest[(manifest["domain"] == domain) & (manifest["split"] == "val")]
    return {Path(path).name: label for path, label in zip(ours["path"], ours["label"], strict=True)}


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    model: Annotated[str, typer.Option(help="Network of both sides.")] = "tf_efficientnet_lite0",
    preset: Annotated[str, typer.Option(help="Our side's.")] = "best",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each side has in the end.")] = 2,
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Race for the score; with the archives of 3,000 images half an hour a seed on two cores."""
    command = ["hemafast", "train", "--preset", preset, "--model", model]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = folder / "prepared"
        prepare_real(source, prepared, group_pattern)
        result: dict[str, Any] = {
            "command": f"python benchmarks/equal_time.py --model {model} --preset {preset} --seeds {seeds}",
            "ours": " ".join(command),
            "machine": choose_machine(device="cpu", amp="auto", compiled="off").facts,
            "model": model,
            "seconds": BUDGETS,
            "answers": {domain: {side: [] for side in SIDES} for domain in BUDGETS},
            "taken": {domain: [] for domain in BUDGETS},
            "domains": {},
        }
        earlier = before(json_file, result["machine"])
        result |= {name: earlier[name] for name in ("answers", "taken") if earlier}
        for domain in BUDGETS:
            class_folders(prepared, domain, folder / domain)
        for seed in range(seeds):
            for domain, seconds in BUDGETS.items():
                runs: dict[str, list[Answers]] = result["answers"][domain]
                if seed >= len(runs["hemafast"]):
                    output = folder / f"runs-{domain}-{seed}"
                    answers, taken = run_ours(prepared, domain, command, seed, seconds, output)
                    runs["hemafast"].append(answers)
                    result["taken"][domain].append(taken)
                if seed >= len(runs["reference"]):
                    runs["reference"].append(best_within(folder / domain, model, seed, seconds))
                result["domains"][domain] = judged(truth(prepared, domain), runs)
                typer.echo(f"{domain}, seed {seed}: {result['domains'][domain]}, {result['taken'][domain]} s", err=True)
                write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The score of both sides after the same seconds, by domain."""
    result = results["equal_time"]
    rows = [
        [
            domain,
            f"{result['seconds'][domain]:.0f}",
            *(_with_interval(found["macro_f1"][side], ".3f") for side in SIDES),
            _with_interval(found["ahead"], "+.3f"),
            " against ".join(" / ".join(f"{score:.3f}" for score in found["seeds"][side]) for side in SIDES),
            str(found["classes"]),
            str(found["images"]),
        ]
        for domain, found in result["domains"].items()
    ]
    note = (
        f"`{result['command']}`: `{result['ours']} --time-budget SECONDS` beside the reference's loop. Macro-F1 of "
        "the best epoch within the seconds, mean over the seeds (95 % interval over the images, the same for both "
        f"sides). Of its {' and '.join(f'{seconds:.0f}' for seconds in result['seconds'].values())} s hemafast took "
        f"{' and '.join(' / '.join(f'{one:.1f}' for one in taken) for taken in result['taken'].values())}. "
        f"{machine_line(result['machine'])}"
    )
    header = "validation images of | seconds | hemafast | reference | ahead by | each seed | classes | images"
    return {"equal_time": table(header, rows, note)}


def _with_interval(found: Mapping[str, Any], form: str) -> str:
    low, high = found["ci95"]
    return f"**{found['mean']:{form}}** ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    typer.run(main)
