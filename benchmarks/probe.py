"""What `hemafast train --preset probe` scores and costs, by share of the labels.

    python benchmarks/probe.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/probe.json

The shares are those of benchmarks/pretraining.py: drawn from each class of Acevedo_20 by the seed, scored on the same
validation images. Seeds are the outer loop; the result is written after each run, and a later call adds what is
missing. Seconds are those of the processor, of the whole call with its evaluation, so that other work beside does not
count.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from pretraining import DOMAIN, Cells  # a script beside this one

import hemafast as hf
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import Labels, confusions, count_scores

SHARES = (0.02, 0.1, 1.0)


def main(
    source: Annotated[Path, typer.Option(help="Folder with the real archives.")],
    json_file: JsonFileAddedTo,
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each share has in the end.")] = 3,
    share: Annotated[list[float] | None, typer.Option(help="Share of the labels; may be repeated.")] = None,
) -> None:
    """Probe with every share of the labels and every seed."""
    with tempfile.TemporaryDirectory() as folder:
        cells = Cells(source, Path(folder))
        result: dict[str, Any] = {"machine": machine_facts("cpu"), "images": len(cells.labels), "labels": []}
        result |= {"started_from": "", "runs": {}} | before(json_file, result["machine"])
        for seed in range(seeds):
            for part in share or SHARES:
                runs = result["runs"].setdefault(f"{part:g}", {})
                if str(seed) in runs:
                    continue
                runs[str(seed)] = _run(cells.of_share(part, seed), seed, Path(folder, "runs"), result)
                write_json(result, json_file)
                typer.echo(f"{part:.0%} of the labels, seed {seed}: {_told(result, runs[str(seed)])}", err=True)


def _run(data: hf.Dataset, seed: int, output: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; notes the true classes and the origin of the weights in `result`."""
    began = time.process_time()
    run = hf.train(data, preset="probe", seed=seed, output=output, amp="off", track=())
    seconds, answers = time.process_time() - began, run.predictions.sort_values("image")
    result["labels"] = [data.classes.index(name) for name in answers["label"]]
    result["started_from"] = run.metrics["model"]["started_from"]
    return {
        "cpu_seconds": round(seconds, 1),
        "smoothness": float(run.history["smoothness"].iloc[0]),
        "predicted": [data.classes.index(name) for name in answers["predicted"]],
    }


def _told(result: dict[str, Any], run: dict[str, Any]) -> str:
    return f"macro-F1 {_scores(result, run)[0]:.3f}, {run['cpu_seconds']:.0f} CPU s"


def _scores(result: dict[str, Any], run: dict[str, Any]) -> Any:
    """macro-F1 on the images as they are, then on each resample of them."""
    labels: Labels = np.array(result["labels"])
    predicted, classes = np.array(run["predicted"]), max(*result["labels"], *run["predicted"]) + 1
    parts = [
        count_scores(confusions(labels, predicted, weights, classes))["macro_f1"] for weights in resample(len(labels))
    ]
    return np.concatenate(parts)


def tables(results: Any) -> dict[str, str]:
    """Scores and seconds by share of the labels."""
    result = results["probe"]
    rows = []
    for share, runs in sorted(result["runs"].items(), key=lambda one: float(one[0])):
        scores = np.mean([_scores(result, run) for run in runs.values()], axis=0)
        low, high = interval(scores)
        by_seed = ", ".join(f"{_scores(result, run)[0]:.3f}" for run in runs.values())
        seconds = mean(run["cpu_seconds"] for run in runs.values())
        rows.append([f"{float(share):.0%}", f"{scores[0]:.3f} ({low:.3f} to {high:.3f})", by_seed, f"{seconds:.0f}"])
    note = (
        f"`benchmarks/probe.py`: `hemafast train --preset probe` on shares of {result['images']:,} labelled images of "
        f"{DOMAIN}, scored on {len(result['labels'])} others. macro-F1, mean over the seeds (95 % interval over the "
        f"images). CPU seconds of the whole command, imports left out, beside other work. "
        f"{result['started_from']}. "
        f"{machine_line(result['machine'])}"
    )
    return {"probe": table("labels | macro-F1 | each seed | CPU seconds", rows, note)}


if __name__ == "__main__":
    typer.run(main)
