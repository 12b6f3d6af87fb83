"""How well `hemafast train --time-budget` keeps its time: whole commands, report included, by preset and budget.

    python benchmarks/on_time.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/on_time.json

Every run is a process of its own on the same split. The result is written after each of them, and a second call with
more seeds adds to it.
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

import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from time_to_score import prepare_real

from hemafast.engine.machine import choose_machine
from hemafast.preparation.split import TRAIN, VAL

BUDGETS = (("fast", 60), ("fast", 120), ("quick", 120), ("quick", 300), ("best", 300))
"""Presets and seconds."""
MODEL = "tf_efficientnet_lite0"
"""Its pretrained weights come from a package: a score does not depend on whether others could be fetched."""


def run(preset: str, seconds: int, prepared: Path, seed: int, output: Path) -> dict[str, float]:
    """Train within a budget: the seconds of the command, its epochs, and the macro-F1 of its best model."""
    asked = ["--model", MODEL, "--data", str(prepared), "--seed", str(seed), "--time-budget", f"{seconds}s"]
    command = [sys.executable, "-m", "hemafast", "train", "--preset", preset, *asked, "--output", str(output), "--json"]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    taken = time.perf_counter() - started
    metrics: dict[str, Any] = json.loads(done.stdout)
    return {
        "seconds": taken,
        "epochs": metrics["training"]["epochs"],
        "f1_macro": metrics["pooled"]["macro_f1"],
    }


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    seeds: Annotated[int, typer.Option(min=1, help="How often each budget is tried in the end.")] = 1,
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Try all budgets, a quarter of an hour a seed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        prepared = folder / "prepared"
        dataset = prepare_real(source, prepared, group_pattern)
        result: dict[str, Any] = {
            "command": f"python benchmarks/on_time.py --seeds {seeds}",
            "machine": choose_machine(device="cpu", amp="auto", compiled="off").facts,
            "model": MODEL,
            "domains": list(dataset.info.domains),
            "images": {split: int(dataset.counts(split).sum()) for split in (TRAIN, VAL)},
        }
        result["runs"] = before(json_file, result["machine"]).get("runs", [])
        done = {(one["preset"], one["budget"], one["seed"]) for one in result["runs"]}
        for seed in range(seeds):
            for preset, seconds in BUDGETS:
                if (preset, seconds, seed) not in done:
                    found = run(preset, seconds, prepared, seed, folder / f"{preset}-{seconds}-{seed}")
                    typer.echo(f"{preset}, {seconds} s, seed {seed}: {found}", err=True)
                    result["runs"].append({"preset": preset, "budget": seconds, "seed": seed, **found})
                    write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Time budgets, and the seconds that the command took."""
    result = results["on_time"]
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for one in result["runs"]:
        runs.setdefault((one["preset"], one["budget"]), []).append(one)
    rows = [
        [
            f"`--preset {preset} --time-budget {budget}s`",
            ", ".join(f"{one['seconds']:.1f} ({one['seconds'] / budget - 1:+.1%})" for one in seeds),
            ", ".join(str(one["epochs"]) for one in seeds),
            ", ".join(f"{one['f1_macro']:.3f}" for one in seeds),
        ]
        for (preset, budget), seeds in runs.items()
    ]
    images = result["images"]
    note = (
        f"`{result['command']}`: {result['model']}, {images['train']:,} training and {images['val']} validation "
        f"images of {' and '.join(result['domains'])}. {machine_line(result['machine'])}"
    )
    return {"on_time": table("| seconds of the command | epochs | macro-F1", rows, note)}


if __name__ == "__main__":
    typer.run(main)
