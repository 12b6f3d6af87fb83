"""One self-contained HTML page about a run."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from hemafast.engine.journal import read_rows
from hemafast.engine.run import CONFIG, MACHINE
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import read_metrics
from hemafast.evaluate.plots import plot_confusions, plot_curves
from hemafast.metrics import with_pooled

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write report.html from what the run folder holds. Raises HemafastError if files are missing there."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    metrics, rows = read_metrics(folder), read_rows(folder)
    environment = Environment(
        loader=PackageLoader("hemafast", "evaluate"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    sets = with_pooled(metrics["domains"], metrics["pooled"])
    confusions = {name: np.array(scores["confusion"]) for name, scores in sets.items()}
    page = environment.get_template("report.html.j2").render(
        run=folder.name,
        metrics=metrics,
        sets=sets,
        config=_read_json(folder / CONFIG),
        machine=_read_json(folder / MACHINE),
        confusion_plot=_embedded(lambda file: plot_confusions(file, confusions, metrics["model"]["classes"])),
        curves_plot=_embedded(lambda file: plot_curves(file, rows)) if rows else None,
    )
    path = folder / REPORT
    path.write_text(page, encoding="utf-8")
    return path


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(f"{file} cannot be read ({error}).", "A report needs the whole run folder.") from error
    return content


def _embedded(draw: Callable[[IO[bytes]], None]) -> str:
    """A picture as a data address, so that the page needs no other file."""
    picture = io.BytesIO()
    draw(picture)
    return "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
