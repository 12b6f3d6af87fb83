"""`hemafast crossdomain` on real archives: prepare, train on each domain, on all but one and on all, test on each.

    python benchmarks/crossdomain.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/crossdomain.json \
        --prepare "--labels 'Class Labels of Dataset 1.csv' --class-map Neutrophil=neutrophil_segmented,..." \
        --class-map neutrophil_banded=neutrophil_segmented

Writes machine, versions, command, seconds and everything that the command found. Refuses drawn archives.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from output import JsonFile, machine_line, table, write_json
from quick import run_hemafast  # a script beside this one

from hemafast.engine.machine import machine_facts


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFile,
    preset: Annotated[str, typer.Option(help="Preset to train with.")] = "quick",
    prepare: Annotated[str, typer.Option(help="Options of `hemafast prepare`, as one word.")] = "",
    class_map: Annotated[str, typer.Option(help="As for `hemafast crossdomain`.")] = "",
) -> None:
    """Prepare and train in a temporary folder, and write the result."""
    options, merged = shlex.split(prepare), ["--class-map", class_map] if class_map else []
    with tempfile.TemporaryDirectory() as folder:
        prepared, runs = Path(folder, "prepared"), Path(folder, "runs")
        run_hemafast(["prepare", "--source", str(source), "--output", str(prepared), "--json", *options])
        asked = ["crossdomain", "--preset", preset, *merged, "--data", str(prepared), "--output", str(runs), "--json"]
        found, seconds = run_hemafast(asked)
    if found["data"]["drawn"]:
        sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
    del found["data"]["folder"], found["settings"]["data"], found["settings"]["output"]
    for row in found["trained"]:
        del row["run"]
    result = {
        "prepared_by": shlex.join(["hemafast", "prepare", *options]),
        "command": shlex.join(["hemafast", "crossdomain", "--preset", preset, *merged]),
        "machine": machine_facts("cpu"),
        "command_seconds": seconds,
        "found": found,
    }
    write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Scores of each model on every domain, and what gives a domain away."""
    result = results["crossdomain"]
    found = result["found"]
    cells = {(cell["trained_on"], cell["tested_on"]): cell["shared"] for cell in found["cells"]}
    tested = [test["name"] for test in found["tested"]]
    rows = [
        [row["name"], f"{row['images']:,}", *(_score(cells[row["name"], test]) for test in tested)]
        for row in found["trained"]
    ]
    note = (
        "Macro-F1 over the classes that both have, 95 % interval, number of classes and validation images. "
        f"`{result['prepared_by']}`, `{result['command']}`, one seed; "
        f"{sum(row['seconds'] for row in found['trained']):.0f} s of training in all. {machine_line(result['machine'])}"
    )
    header = " | ".join(["trained on", "images", *(f"tested on {test}" for test in tested)])
    return {"crossdomain": table(header, rows, note, f"> {found['shortcuts']['verdict']}")}


def _score(shared: Mapping[str, Any]) -> str:
    low, high = shared["macro_f1"]["ci95"]
    if shared["macro_f1"]["value"] is None:
        return "no shared class"
    return (
        f"**{shared['macro_f1']['value']:.3f}** ({low:.3f} to {high:.3f}); {len(shared['classes'])} classes, "
        f"{shared['images']} images"
    )


if __name__ == "__main__":
    typer.run(main)
