"""One self-contained HTML page about one run, or about several side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.command import prepare_command, train_command
from hemafast.config import TrainConfig, to_plain
from hemafast.engine.checkpoint import load_best
from hemafast.engine.journal import Row, read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.calibration import FEWEST
from hemafast.evaluate.conformal import exceptions
from hemafast.evaluate.elsewhere import home_and_elsewhere
from hemafast.evaluate.evaluate import Metrics, run_of
from hemafast.evaluate.folding import notes
from hemafast.files import write_text, writing
from hemafast.metrics import with_pooled
from hemafast.pages import render
from hemafast.pictures import embedded_pixels, heat_stops, on_page, shades
from hemafast.preparation.schema import Scale, scale_words
from hemafast.preparation.split import WORDS
from hemafast.reading import cause
from hemafast.recorded import MachineFile, read_recorded
from hemafast.regular import read_regular
from hemafast.report.compare import changed_settings, difference
from hemafast.report.gallery import Gallery, listing, open_gallery
from hemafast.report.plots import curve_figures, reliability_figures, validation_figures
from hemafast.run_folder import (
    BEST,
    COMMAND,
    ENSEMBLE,
    MACHINE,
    PREDICTIONS,
    REPORT,
    read_config,
    read_ensemble,
    read_metrics,
    tells_settings,
)
from hemafast.words import counted

if TYPE_CHECKING:
    from markupsafe import Markup

THUMBNAILS = 600
"""Pictures of cells on a page, all runs together: about 2 MB."""
_WORST = 24
_LONGEST_COMMAND = 65_536  # bytes
_SIDE = 112  # px: of an overlay
_CELL, _CELL_IN_THE_DARK = "#005ea2", "#56b4e9"  # of the confusion matrix, where all of a row is in one cell


@dataclass(frozen=True)
class Part:
    """One run and the scores that the page shows of it."""

    run: Path
    scores: Path
    """Folder of the scores: the run folder, or one of its evaluations on other data."""
    name: str
    config: TrainConfig
    machine: dict[str, Any]
    metrics: Metrics
    rows: list[Row]
    gallery: Gallery


def write_report(
    folders: Path | Sequence[Path], output: Path | None = None, *, thumbnails: int = THUMBNAILS, explain: bool = False
) -> Path:
    """Write one HTML page about evaluated runs; it needs no other file.

    Args:
        folders: run folders, or evaluations of runs on other data (RUN/evaluations/NAME).
        output: the page to write; by default REPORT in the folder, if there is only one.
        thumbnails: largest number of cells shown as pictures, all runs together; the page says how many are.
        explain: show by Grad-CAM where the model looked for its most confident mistakes.

    Returns:
        The page.

    Raises:
        HemafastError: a folder lacks files, or the page cannot be written.
    """
    runs = [folders] if isinstance(folders, Path) else list(folders)
    if output is None and len(runs) > 1:
        raise HemafastError("A page about several runs needs a file name.", "Name it with --output.")
    parts = [read_part(folder, name) for folder, name in zip(runs, _names(runs), strict=True)]
    page = render(
        "report/report.html.j2",
        title=parts[0].name if len(parts) == 1 else counted(len(parts), "run"),
        runs=[_run(part, thumbnails // len(parts), explain) for part in parts],
        comparison=_comparison(parts) if len(parts) > 1 else None,
        shades={"light": shades(_CELL, "#ffffff"), "dark": shades(_CELL_IN_THE_DARK, "#16181b")},
        heat=heat_stops(),
    )
    path = output or runs[0] / REPORT
    with writing(path, "Name another file with --output."):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, page)
    return path


def read_part(scores: Path, name: str) -> Part:
    """Everything that the page shows of one run. Raises HemafastError if a file is missing or damaged."""
    run = run_of(scores)
    config, metrics = read_config(run), read_metrics(scores)
    try:
        machine = read_recorded(run / MACHINE, MachineFile)
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{run / MACHINE} cannot be read ({cause(error)}).", "A report needs the whole run folder."
        ) from error
    return Part(
        run=run,
        scores=scores,
        name=name,
        config=config,
        machine=machine,
        metrics=metrics,
        rows=read_rows(run),
        gallery=open_gallery(scores / PREDICTIONS, Path(metrics["data"]["folder"]), metrics["data"]["fingerprint"]),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders: the run at least, and as many as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    twice = next((path for index, path in enumerate(parts) if path in parts[:index]), None)
    if twice is not None:
        raise HemafastError(f"The run {Path(*twice)} is named twice.", "Name each run once.")
    least = max(len(path) - len(run_of(Path(*path)).parts) for path in parts) + 1
    depth = next(depth for depth in range(least, 100) if len({path[-depth:] for path in parts}) == len(parts))
    return ["/".join(path[-depth:]) for path in parts]


def _run(part: Part, thumbnails: int, explain: bool) -> dict[str, Any]:
    """Values for the template of one run."""
    metrics, gallery = part.metrics, part.gallery
    pictures, overlays = gallery.thumbnails(thumbnails), _overlays(part) if explain else []
    fitted, alike = metrics["model"]["calibration"].get("set_thresholds"), metrics.get("likeness")
    return {
        "name": part.name,
        "metrics": metrics,
        "images_are": WORDS[metrics["split"]],
        "sets": with_pooled(metrics["domains"], metrics["pooled"]),
        "classes": metrics.get("classes", metrics["model"]["classes"]),  # of older runs
        "told": home_and_elsewhere(part.run),
        "ensemble": read_ensemble(part.run) if (part.run / ENSEMBLE).is_file() else None,
        "folding": notes(metrics["folding"]) if "folding" in metrics else [],
        "scales": {name: _scale_words(domain) for name, domain in metrics["data"]["domains"].items()},
        "curves": _shown(curve_figures(part.rows), "Training curves; the numbers are in training_log.csv")
        if part.rows
        else [],
        "reliability": _shown(
            reliability_figures(metrics["pooled"]["calibrated"]),
            "Reliability diagram; the numbers are in metrics.json",
        ),
        "fewest": FEWEST,
        "set_exceptions": exceptions(metrics["model"]["classes"], fitted) if fitted else [],
        "likeness": with_pooled(alike["domains"], alike["pooled"]) if alike else {},
        "worst": _worst(gallery, pictures, overlays),
        "listing": listing(gallery, pictures, overlays),
        "listed": len(gallery.table),
        "images": gallery.images,
        "machine": part.machine,
        "config": {name: value for name, value in to_plain(part.config).items() if value is not None}
        if tells_settings(part.run)
        else {},
        "commands": [prepare_command(metrics["data"]["prepared_by"]), _made_by(part)],
    }


def _made_by(part: Part) -> str:
    """The command that makes the run again; of a run of an older version, as its settings have it."""
    try:
        return read_regular(part.run / COMMAND, _LONGEST_COMMAND).decode("utf-8", "replace").strip()
    except OSError:
        return train_command(part.config)


def _scale_words(domain: Mapping[str, Any]) -> str:
    """Micrometres per pixel of a domain, and how they are known. Runs of older versions do not say it."""
    said = domain.get("scale")
    return scale_words(domain["um_per_pixel"], Scale.model_validate(said) if said else None)


def _worst(gallery: Gallery, pictures: Sequence[str], overlays: Sequence[str]) -> list[dict[str, Any]]:
    """The most confident mistakes, for those whose browser runs no script."""
    count = gallery.mistakes(_WORST)
    rows = gallery.table[:count].to_dict("records")
    return [
        {"row": row, "picture": picture, "overlay": overlay, "told": gallery.told(place)}
        for place, (row, picture, overlay) in enumerate(zip_longest(rows, pictures[:count], overlays))
    ]


def _overlays(part: Part) -> list[str]:
    """Grad-CAM pictures of the most confident mistakes; none without the data set."""
    from hemafast.deploy.heat import overlays

    gallery = part.gallery
    count = gallery.mistakes(_WORST)
    if gallery.dataset is None or not count:
        return []
    model, card = load_best(part.run / BEST)
    classes = card.places_of(gallery.table["predicted"][:count])
    pictures = overlays(model, gallery.views(range(count), card.image_size), classes)
    return [embedded_pixels(picture, _SIDE) for picture in pictures]


def _shown(figures: Sequence[Any], alt: str) -> list[Markup]:
    """Figures as parts of the page; each has its title beside `alt`."""
    return [on_page(figure, f"{figure.axes[0].get_title()}. {alt}") for figure in figures]


def _comparison(parts: Sequence[Part]) -> dict[str, Any]:
    """Values for the template of the comparison."""
    return {
        "names": [part.name for part in parts],
        "metrics": [part.metrics for part in parts],
        "domains": list(dict.fromkeys(name for part in parts for name in part.metrics["domains"])),
        "settings": changed_settings([to_plain(part.config) for part in parts]),
        "words": WORDS,
        "differences": [difference(parts[0].scores, part.scores) for part in parts[1:]],
        "curves": _shown(
            validation_figures({part.name: part.rows for part in parts}),
            "All runs; the numbers are in their training_log.csv",
        ),
    }
