"""The main job on real archives, timed from the outside: prepare, then `hemafast train --preset quick`.

    python benchmarks/quick.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/quick.json

Writes machine, versions, command, seconds and metrics. Refuses drawn archives: their scores mean nothing.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from output import JsonFile, machine_line, table, write_json


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFile,
    preset: Annotated[str, typer.Option(help="Preset to train with.")] = "quick",
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Prepare and train in a temporary folder, and write the result."""
    groups = ["--group-pattern", group_pattern] if group_pattern else []
    with tempfile.TemporaryDirectory() as folder:
        prepared, runs = Path(folder, "prepared"), Path(folder, "runs")
        _, prepare_seconds = run_hemafast(
            ["prepare", "--source", str(source), "--output", str(prepared), "--json", *groups]
        )
        train = ["train", "--preset", preset, "--data", str(prepared), "--output", str(runs), "--json"]
        metrics, train_seconds = run_hemafast(train)
        machine = json.loads((Path(metrics["run"]) / "machine.json").read_text(encoding="utf-8"))
    if metrics["data"]["drawn"]:
        sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
    result = {
        "prepared_by": shlex.join(["hemafast", "prepare", *groups]),
        "command": f"hemafast train --preset {preset}",
        "machine": machine["facts"],
        "prepare_seconds": prepare_seconds,
        "command_seconds": train_seconds,
        "metrics": {name: value for name, value in metrics.items() if name not in ("run", "report")},
    }
    del result["metrics"]["data"]["folder"]
    write_json(result, json_file)


def run_hemafast(arguments: list[str]) -> tuple[dict[str, Any], float]:
    """What `hemafast` prints as JSON, and the seconds the whole command took, imports included."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hemafast", *arguments], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout), time.perf_counter() - started


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Scores by domain."""
    result = results["quick"]
    metrics = result["metrics"]
    training, data = metrics["training"], metrics["data"]
    rows = [
        [
            name,
            f"**{part['macro_f1']:.3f}**",
            " to ".join(f"{end:.3f}" for end in part["ci95"]["macro_f1"]),
            f"{part['accuracy']:.3f}",
            str(part["classes"]),
            str(part["images"]),
        ]
        for name, part in (*metrics["domains"].items(), ("pooled", metrics["pooled"]))
    ]
    note = (
        f"`{result['prepared_by']}` and `{result['command']}` on "
        f"{sum(domain['images'] for domain in data['domains'].values()):,} real images ({', '.join(data['domains'])}; "
        f"{100 * data['val_fraction']:.0f} % validation, split seed {data['split_seed']}, training seed "
        f"{training['seed']}), started from {metrics['model']['started_from']}. Preparation "
        f"{result['prepare_seconds']:.0f} s; {training['epochs']} epochs in {training['total_seconds']:.0f} s, "
        f"validation included; {training['train_images_per_second']:.0f} images/s. {machine_line(result['machine'])}"
    )
    header = "validation images of | macro-F1 | 95 % interval | accuracy | classes | images"
    return {"quick": table(header, rows, note)}


if __name__ == "__main__":
    typer.run(main)
