"""Where the scripts beside this one put what they measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hemafast.files import write_whole

JsonFile = Annotated[Path, typer.Option("--json", help="Where to write the result.")]
"""Option of a script that takes so long that nobody would run it without keeping the result."""

JsonFileAddedTo = Annotated[Path, typer.Option("--json", help="Result; one that is there is added to.")]
"""Option of a script that goes on where an earlier call ended: see `before`."""

JsonFileOrNone = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")]
"""Option of a script that also prints the result."""


def before(file: Path, machine: dict[str, str]) -> dict[str, Any]:
    """What an earlier call found, if there was one. Seconds of two processors are not mixed: the process ends."""
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found["machine"]["processor"] != machine["processor"]:
        sys.exit(
            f"{file} was measured on {found['machine']['processor']}, and this is {machine['processor']}: "
            "name another file, or move that one away to begin anew."
        )
    return found


def write_json(result: Mapping[str, Any], file: Path) -> None:
    """Replace the file by this result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: part.write_text(_text(result), encoding="utf-8"))


def print_json(result: Mapping[str, Any], file: Path | None) -> None:
    """Print this result, and replace the file by it where there is to be one."""
    if file is not None:
        write_json(result, file)
    typer.echo(_text(result), nl=False)


def _text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, indent=2) + "\n"
