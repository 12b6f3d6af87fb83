"""One self-contained HTML page about a run, or about several side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig, to_plain
from hemafast.engine.checkpoint import load_best
from hemafast.engine.journal import Row, read_rows
from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import Metrics
from hemafast.files import write_whole
from hemafast.metrics import with_pooled
from hemafast.pages import render
from hemafast.pictures import embedded, embedded_pixels
from hemafast.report.command import prepare_command, train_command
from hemafast.report.compare import changed_settings, differences
from hemafast.report.gallery import Gallery, listing, open_gallery
from hemafast.report.plots import plot_curves, plot_reliability, plot_validation
from hemafast.run_folder import BEST, MACHINE, PREDICTIONS, read_config, read_metrics

REPORT = "report.html"

THUMBNAILS = 600
"""Pictures of cells on a page, of all runs together: about 2 MB."""
_WORST = 24
_SIDE = 112  # px: of an overlay


@dataclass(frozen=True)
class Part:
    """What a run folder holds."""

    folder: Path
    name: str
    config: TrainConfig
    machine: dict[str, Any]
    metrics: Metrics
    rows: list[Row]
    gallery: Gallery


def write_report(
    folders: Path | Sequence[Path],
    output: Path | None = None,
    *,
    thumbnails: int = THUMBNAILS,
    explain: bool = False,
) -> Path:
    """Write a page from what run folders hold; by default into the folder, if it is one.

    At most `thumbnails` cells are shown as pictures, and the page says so. `explain` adds to each of the
    surest mistakes where its answer was read from. Raises HemafastError if files are missing in a folder.
    """
    runs = [folders] if isinstance(folders, Path) else list(folders)
    if output is None and len(runs) > 1:
        raise HemafastError("A page about several runs belongs into none of them.", "Name it with --output.")
    parts = [read_part(folder, name) for folder, name in zip(runs, _names(runs), strict=True)]
    page = render(
        "report/report.html.j2",
        title=parts[0].name if len(parts) == 1 else f"{len(parts)} runs",
        runs=[_run(part, thumbnails // len(parts), explain) for part in parts],
        comparison=_comparison(parts) if len(parts) > 1 else None,
    )
    path = output or runs[0] / REPORT
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda part: part.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise HemafastError(f"{path} cannot be written ({error}).", "Name another file with --output.") from error
    return path


def read_part(folder: Path, name: str) -> Part:
    """Everything that the page says of one run. Raises HemafastError if a file is missing or cannot be read."""
    config, metrics = read_config(folder), read_metrics(folder)
    data = Path(metrics["data"]["folder"])
    return Part(
        folder=folder,
        name=name,
        config=config,
        machine=_read_machine(folder),
        metrics=metrics,
        rows=read_rows(folder),
        gallery=open_gallery(folder / PREDICTIONS, data, metrics["data"]["fingerprint"]),
    )


def _names(folders: Sequence[Path]) -> list[str]:
    """The last parts of the folders: as many as it takes to tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise HemafastError("A run is named twice.", "Name each run once.")
    depth = next(depth for depth in range(1, 100) if len({path[-depth:] for path in parts}) == len(parts))
    return ["/".join(path[-depth:]) for path in parts]


def _run(part: Part, thumbnails: int, explain: bool) -> dict[str, Any]:
    """What the template says of one run."""
    metrics, gallery = part.metrics, part.gallery
    pictures = gallery.thumbnails(thumbnails)
    return {
        "name": part.name,
        "metrics": metrics,
        "sets": with_pooled(metrics["domains"], metrics["pooled"]),
        "classes": metrics["model"]["classes"],
        "curves": embedded(lambda file: plot_curves(file, part.rows)) if part.rows else None,
        "reliability": embedded(lambda file: plot_reliability(file, metrics["pooled"]["calibrated"])),
        "worst": _worst(part, pictures, explain),
        "explained": explain,
        "listing": listing(gallery, pictures),
        "listed": len(gallery.table),
        "images": gallery.images,
        "machine": part.machine,
        "config": {name: value for name, value in to_plain(part.config).items() if value is not None},
        "commands": [prepare_command(metrics["data"]["prepared_by"]), train_command(part.config)],
    }


def _worst(part: Part, pictures: Sequence[str], explain: bool) -> list[dict[str, Any]]:
    """The mistakes that the model was surest of."""
    gallery = part.gallery
    count = min(int(gallery.wrong.sum()), _WORST)
    overlays: list[str | None] = [None] * count
    if explain and gallery.dataset is not None and count:
        overlays = [*_overlays(part, count)]
    return [
        {
            "picture": pictures[place] if place < len(pictures) else None,
            "overlay": overlays[place],
            "file": row["image"],
            "label": row["label"],
            "predicted": row["predicted"],
            "told": gallery.told(place),
        }
        for place, (_, row) in enumerate(gallery.table.iloc[:count].iterrows())
    ]


def _overlays(part: Part, count: int) -> Iterator[str]:
    """Where the answers to the first cells of the gallery were read from."""
    from hemafast.deploy.heat import overlays

    model, card = load_best(part.folder / BEST)
    classes = [card.classes.index(name) for name in part.gallery.table["predicted"][:count]]
    for overlay in overlays(model, part.gallery.views(range(count), card.image_size), classes):
        yield embedded_pixels(overlay, _SIDE)


def _comparison(parts: Sequence[Part]) -> dict[str, Any]:
    """What the template says of several runs together."""
    names = [part.name for part in parts]
    domains = list(dict.fromkeys(name for part in parts for name in part.metrics["domains"]))
    return {
        "names": names,
        "metrics": [part.metrics for part in parts],
        "domains": domains,
        "settings": changed_settings([to_plain(part.config) for part in parts]),
        "differences": differences(parts[0].folder, [part.folder for part in parts[1:]]),
        "curves": embedded(lambda file: plot_validation(file, {part.name: part.rows for part in parts})),
    }


def _read_machine(folder: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((folder / MACHINE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise HemafastError(
            f"{folder / MACHINE} cannot be read ({error}).", "A report needs the whole run folder."
        ) from error
    return content
