"""One self-contained HTML page about a prepared data set, with its pictures as files beside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.data.dataset import Dataset, open_dataset
from hemafast.eda import measure, plots
from hemafast.files import make_folder, writing
from hemafast.pages import render
from hemafast.pictures import drawn, embedded_pixels, on_page, save
from hemafast.preparation import schema
from hemafast.preparation.appearance import find_implausible
from hemafast.preparation.reader import PackedPixels
from hemafast.progress import SILENT, Progress, stage

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE = "eda.html"
_CELL, _DENSE, _MEASURED = 96, 72, 128  # px: side of a cell on the page
_BAR = 10  # um
_MOST_COPIES, _MOST_QUARANTINED = 30, 200  # shown on the page; the manifest and quarantine.csv list all
_SHOWN = {
    "class_balance": "Images of each class in each domain; the numbers are in the table",
    "image_sizes": "Width and height of the images; the numbers are in the table",
    "colours": "Densities of red, green, blue and brightness, and hue against saturation, by domain",
    "split": "Images of each class in each part of the split; the numbers are in the tables",
}
"""The figures on the page, and what they show. The page has the cells of `samples` apart."""


def write_eda(data: Path, output: Path, *, images_per_class: int = 8, progress: Progress = SILENT) -> Path:
    """Write eda.html about a prepared data set, and its pictures (PNG, 200 dpi), into `output`. Returns the page.

    Raises HemafastError if `data` is not a prepared data set, or if `output` cannot be written.
    """
    dataset = open_dataset(data)
    packed = dataset.files.packed[max(dataset.info.pack_sizes)]
    samples = measure.choose_samples(dataset, images_per_class)
    counts, parts, files = measure.count_classes(dataset), measure.count_parts(dataset), measure.count_files(dataset)
    means = measure.mean_colours(dataset)
    figures: dict[str, Callable[[], Any]] = {
        "class_balance": partial(plots.draw_balance, counts),
        "image_sizes": partial(plots.draw_sizes, files),
        "colours": partial(plots.draw_colours, means, measure.sample_pixels(dataset)),
        "samples": partial(plots.draw_samples, samples, packed),
        "split": partial(plots.draw_split, parts),
    }
    copies = measure.find_copies(dataset)
    make_folder(output)
    pngs, pictures = _drawn(figures, progress)
    page = render(
        "eda/eda.html.j2",
        name=str(data),
        info=dataset.info,
        headline=_headline(dataset, len(copies)),
        warnings=measure.warnings_about(dataset),
        implausible=_implausible(dataset, packed),
        plots=pictures,
        counts=counts,
        files=measure.list_sizes(files),
        measured=_measured(dataset, packed, samples),
        samples={label: _cells(dataset, packed, chosen) for label, chosen in samples.items()},
        copies=[(embedded_pixels(packed[row], _CELL), paths) for row, paths in copies[:_MOST_COPIES]],
        copies_found=len(copies),
        quarantined=_quarantined(dataset, packed),
        parts=parts,
    )
    with writing(output):
        _write_together(output, {f"{name}.png": png for name, png in pngs.items()} | {PAGE: page.encode()})
    return output / PAGE


def _drawn(figures: dict[str, Callable[[], Any]], progress: Progress) -> tuple[dict[str, bytes], dict[str, Markup]]:
    """Each figure as PNG, and those that the page shows as part of it."""
    pngs, pictures = {}, {}
    with stage(progress, "drawing", len(figures), unit="pictures"):
        for name, draw in figures.items():
            figure = draw()
            pngs[name] = drawn(partial(save, figure, dpi=plots.DPI))
            if name in _SHOWN:
                pictures[name] = on_page(figure, _SHOWN[name])
            progress.advance()
    return pngs, pictures


def _write_together(folder: Path, files: dict[str, bytes]) -> None:
    """Write all files or, if the disk is full, none."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".eda-") as room:
        for name, content in files.items():
            Path(room, name).write_bytes(content)
        for name in files:
            Path(room, name).replace(folder / name)


def _headline(dataset: Dataset, copies: int) -> dict[str, int]:
    manifest = dataset.table
    good = schema.accepted(manifest)
    return {
        "images": len(manifest),
        "domains": len(dataset.info.domains),
        "classes": good["label"].nunique(),
        "converted": int((manifest["verdict"] == schema.CONVERTED).sum()),
        "quarantined": len(manifest) - len(good),
        "pictures found more than once": copies,
        "groups that stay in one split": good["group"].nunique() - schema.divided_groups(manifest),
    }


def _implausible(dataset: Dataset, packed: PackedPixels) -> list[tuple[str, str]]:
    """A picture of each domain that does not look like stained blood, and why."""
    return [(embedded_pixels(packed[one.example], _CELL), one.note) for one in find_implausible(dataset.table)]


def _measured(
    dataset: Dataset, packed: PackedPixels, samples: dict[str, dict[str, list[int]]]
) -> dict[str, tuple[str, list[tuple[str, float]]]]:
    """By domain: how its scale is known, and cells, each with the length of 10 um in percent of its side."""
    chosen = measure.choose_measured(dataset, samples)
    return {
        name: (
            domain.scale_words,
            [(embedded_pixels(packed[row], _MEASURED), 100 * _BAR / field) for row, field in chosen.get(name, [])],
        )
        for name, domain in dataset.info.domains.items()
    }


def _cells(dataset: Dataset, packed: PackedPixels, chosen: dict[str, list[int]]) -> dict[str, list[tuple[str, str]]]:
    """By domain: picture and file of each cell."""
    paths = dataset.table["path"]
    return {
        domain: [(embedded_pixels(packed[row], _DENSE), str(paths[row])) for row in rows]
        for domain, rows in chosen.items()
    }


def _quarantined(dataset: Dataset, packed: PackedPixels) -> list[tuple[str | None, schema.QuarantinedImage]]:
    """Quarantined images, with a picture if it can be decoded."""
    rows = {path: row for row, path in enumerate(dataset.table["path"])}
    readable = dataset.table["pixels_xxh128"] != ""
    return [
        (embedded_pixels(packed[rows[image.file]], _CELL) if readable[rows[image.file]] else None, image)
        for image in schema.quarantined(dataset.table)[:_MOST_QUARANTINED]
    ]
