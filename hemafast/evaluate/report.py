"""One self-contained HTML page about a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hemafast.engine.journal import read_rows
from hemafast.engine.run import CONFIG, MACHINE
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import read_metrics
from hemafast.evaluate.plots import plot_confusions, plot_curves
from hemafast.metrics import with_pooled
from hemafast.pages import render
from hemafast.pictures import embedded

REPORT = "report.html"


def write_report(folder: Path) -> Path:
    """Write report.html from what the run folder holds. Raises HemafastError if files are missing there."""
    metrics, rows = read_metrics(folder), read_rows(folder)
    sets = with_pooled(metrics["domains"], metrics["pooled"])
    confusions = {name: np.array(scores["confusion"]) for name, scores in sets.items()}
    page = render(
        "evaluate/report.html.j2",
        run=folder.name,
        metrics=metrics,
        sets=sets,
        config=_read_json(folder / CONFIG),
        machine=_read_json(folder / MACHINE),
        confusion_plot=embedded(lambda file: plot_confusions(file, confusions, metrics["model"]["classes"])),
        curves_plot=embedded(lambda file: plot_curves(file, rows)) if rows else None,
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
