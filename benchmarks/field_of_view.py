"""What a physical field of view is worth: the same training on whole images and on their central 25 micrometres.

    python benchmarks/field_of_view.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/field_of_view.json

Each is prepared twice: with the usual split, and with one domain held out entirely, which shows what carries over to a
laboratory that training has not seen. Trains `seeds` times each, interleaved. Refuses drawn archives.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from output import JsonFile, machine_line, table, write_json

FIELDS = ("whole", "25")


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFile,
    holdout: Annotated[str, typer.Option(help="Domain to hold out.")] = "Matek_19",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    preset: Annotated[str, typer.Option(help="Preset to train with.")] = "quick",
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Prepare and train in a temporary folder, and write the result."""
    groups = ["--group-pattern", group_pattern] if group_pattern else []
    splits = {"usual": [], "held out": ["--holdout-domain", holdout]}
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for field, (name, options) in product(FIELDS, splits.items()):
            output = ["--output", f"{folder}/{field}-{name}"]
            info = _run(["prepare", "--source", str(source), "--field-of-view", field, *output, *options, *groups])
            if any(domain["drawn"] for domain in info["domains"].values()):
                sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
        for seed, field, name in product(range(1, seeds + 1), FIELDS, splits):
            data = ["--data", f"{folder}/{field}-{name}", "--output", f"{folder}/runs"]
            metrics = _run(["train", "--preset", preset, "--seed", str(seed), *data])
            scores = {
                domain: {key: part[key] for key in ("macro_f1", "classes", "images")}
                for domain, part in metrics["domains"].items()
            }
            runs.append({"field_of_view": field, "split": name, "seed": seed, "domains": scores})
            machine = json.loads((Path(metrics["run"]) / "machine.json").read_text(encoding="utf-8"))["facts"]
    result = {
        "prepared_by": shlex.join(["hemafast", "prepare", *groups]),
        "preset": preset,
        "holdout": holdout,
        "machine": machine,
        "runs": runs,
    }
    write_json(result, json_file)


def _run(arguments: list[str]) -> dict[str, Any]:
    """What `hemafast` prints as JSON."""
    command = [sys.executable, "-m", "hemafast", *arguments, "--quiet", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Scores of trainings on whole images and on a physical field of view."""
    result = results["field_of_view"]
    runs, rows = result["runs"], []
    for split, domain in (("usual", "Acevedo_20"), ("usual", "Matek_19"), ("held out", result["holdout"])):
        of_split = [run for run in runs if run["split"] == split]
        some = of_split[0]["domains"][domain]
        name = f"{domain}, {'held out entirely' if split == 'held out' else 'usual split'}"
        fields = [[run for run in of_split if run["field_of_view"] == field] for field in FIELDS]
        scores = [[run["domains"][domain]["macro_f1"] for run in found] for found in fields]
        cells = [f"**{mean(found):.3f}** ({', '.join(f'{one:.3f}' for one in found)})" for found in scores]
        rows.append([name, str(some["images"]), str(some["classes"]), *cells])
    note = (
        f"Mean of {len({run['seed'] for run in runs})} training seeds (each of them in brackets), "
        f"`--preset {result['preset']}`, real images, split seed 42, `{result['prepared_by']}`. "
        f"{machine_line(result['machine'])}"
    )
    header = "macro-F1 on validation images of | images | classes | whole image | central 25 um"
    return {"field_of_view": table(header, rows, note)}


if __name__ == "__main__":
    typer.run(main)
