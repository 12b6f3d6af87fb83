"""How the scripts beside this one write their results, and the tables that pages show of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hemafast.cli.tables import spread
from hemafast.files import write_whole
from hemafast.versions import DALI
from hemafast.words import counted

ranged = spread
"""Text of a median with its extremes, `{"median": ..., "min": ..., "max": ...}`."""

JsonFile = Annotated[Path, typer.Option("--json", help="Where to write the result.")]
"""Option of a script that takes too long to run without keeping the result."""

JsonFileAddedTo = Annotated[Path, typer.Option("--json", help="Result. An existing file is added to.")]
"""Option of a script that continues where an earlier call ended: see `before`."""

JsonFileOrNone = Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")]
"""Option of a script that also prints the result."""


def before(file: Path, machine: dict[str, str]) -> dict[str, Any]:
    """The result of an earlier call, or nothing. Ends the process if another processor measured it."""
    if not file.is_file():
        return {}
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if found["machine"]["processor"] != machine["processor"]:
        sys.exit(
            f"{file} was measured on {found['machine']['processor']}, and this is {machine['processor']}: "
            "name another file, or move that one away to start over."
        )
    return found


def write_json(result: Mapping[str, Any], file: Path) -> None:
    """Replace the file by this result."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda part: part.write_text(_text(result), encoding="utf-8"))


def print_json(result: Mapping[str, Any], file: Path | None) -> None:
    """Print this result, and replace the file by it if one is named."""
    if file is not None:
        write_json(result, file)
    typer.echo(_text(result), nl=False)


def _text(result: Mapping[str, Any]) -> str:
    return json.dumps(result, indent=2) + "\n"


class Results(dict[str, Any]):
    """Result files of a folder by name, without suffix. A file is read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> Any:
        self[name] = json.loads((self._folder / f"{name}.json").read_text(encoding="utf-8"))
        return self[name]


def table(header: str, rows: Iterable[Sequence[str]], *notes: str) -> str:
    """A Markdown table with paragraphs below it; `header` names the columns: `first | second`."""
    lines = [f"| {header} |", "|" + "---|" * (header.count("|") + 1), *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n\n".join(["\n".join(lines), *notes])


def times(ratio: Mapping[str, float], digits: int = 2) -> str:
    """How many times as much: the median in bold, and the range."""
    median, least, most = (f"{ratio[name]:.{digits}f}" for name in ("median", "min", "max"))
    return f"**{median}x** ({least} to {most})"


def percentages(share: Mapping[str, float]) -> str:
    """The median of a share, and its range."""
    return f"{share['median']:.1%} ({share['min']:.1%} to {share['max']:.1%})"


def machine_line(facts: Mapping[str, str]) -> str:
    """Processor, GPU and versions, as a sentence."""
    dali = next((facts[name] for name in DALI if name in facts), "not installed")
    versions = f"torch {facts['torch']}, DALI {dali}"
    return f"{counted(int(facts['cores']), 'core')} of {facts['processor']}, {facts.get('gpu', 'no GPU')}, {versions}."
