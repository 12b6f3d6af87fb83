"""`hemafast crossdomain` on real archives: prepare, train on each domain and on both, test on each.

    python benchmarks/crossdomain.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/crossdomain.json

Writes machine, versions, command, seconds and everything that the command found. Refuses drawn archives.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from output import JsonFile, write_json
from quick import run_hemafast  # a script beside this one

from hemafast.engine.machine import machine_facts


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFile,
    preset: Annotated[str, typer.Option(help="Preset to train with.")] = "quick",
    group_pattern: Annotated[str | None, typer.Option(help="As for `hemafast prepare`.")] = None,
) -> None:
    """Prepare and train in a temporary folder, and write what came of it."""
    groups = ["--group-pattern", group_pattern] if group_pattern else []
    with tempfile.TemporaryDirectory() as folder:
        prepared, runs = Path(folder, "prepared"), Path(folder, "runs")
        run_hemafast(["prepare", "--source", str(source), "--output", str(prepared), "--json", *groups])
        asked = ["crossdomain", "--preset", preset, "--data", str(prepared), "--output", str(runs), "--json"]
        found, seconds = run_hemafast(asked)
    if found["data"]["drawn"]:
        sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
    del found["data"]["folder"], found["settings"]["data"], found["settings"]["output"]
    for row in found["trained"]:
        del row["run"]
    result = {
        "prepared_by": shlex.join(["hemafast", "prepare", *groups]),
        "command": f"hemafast crossdomain --preset {preset}",
        "machine": machine_facts("cpu"),
        "command_seconds": seconds,
        "found": found,
    }
    write_json(result, json_file)


if __name__ == "__main__":
    typer.run(main)
