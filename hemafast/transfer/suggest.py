"""Choose which cells of another laboratory to label first, and hand them over: copies, a table to fill in, a page.

Cells are chosen where the model is unsure and where they are unlike those chosen before: k-means++ (Arthur and
Vassilvitskii 2007) on features, as in BADGE (Ash et al. 2020, arXiv 1906.03671), within each predicted class, so that
rare classes get their share.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from hemafast.config import Device
from hemafast.deploy.inputs import Images, read_images
from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import entropy
from hemafast.files import csv_bytes, make_folder, writing
from hemafast.pages import render
from hemafast.pictures import embedded_pixels
from hemafast.progress import SILENT, Progress, stage
from hemafast.transfer import steps
from hemafast.transfer.adapt import command, open_parent, without_labels
from hemafast.transfer.cells import Asked, Cells, read_cells
from hemafast.words import counted

TABLE, PAGE, COPIES = "labels.csv", "label.html", "cells"

_SIDE = 112  # px: of a picture on the page
_TOLD = 3  # classes


@dataclass(frozen=True, slots=True)
class Suggested:
    """Cells to label, and where they are."""

    folder: Path
    table: pd.DataFrame
    """One row per cell: path (as `adapt` finds it), label (empty), predicted, confidence, copy."""
    again: str
    """The command that takes the labels."""

    def to_plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {"folder": str(self.folder), "cells": self.table.to_dict("records"), "next": self.again}

    def lines(self) -> list[str]:
        """What was chosen and what to do next, in words."""
        counts = self.table["predicted"].value_counts()
        named = ", ".join(f"{images} {name}" for name, images in counts.items())
        return [
            f"{counted(len(self.table), 'cell')} to label: {named} by the model",
            f"look at    {self.folder / PAGE}",
            f"fill in    {self.folder / TABLE}, column label",
            f"then       {self.again}",
        ]


def suggest(
    folder: Path,
    data: Images,
    output: Path,
    asked: Asked | None = None,
    *,
    count: int,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Suggested:
    """Choose cells to label, and write copies of them, TABLE and PAGE into `output`.

    Args:
        folder: run folder of the model.
        data: images, as `predict` takes them.
        output: folder to write into; it must be empty or missing.
        asked: the scale of the images; None if nothing is known.
        count: number of cells; all if there are fewer.
        device: where the model runs.
        progress: listens to every stage.

    Returns:
        The cells, in the order in which to label them.

    Raises:
        HemafastError: there is no such model, no image can be read, or `output` holds files or cannot be written.
    """
    _refuse_full(output)
    asked = asked or Asked()
    parent = open_parent(folder, device, asked.classes)
    cells = read_cells(parent.opened, data, asked, parent.card.classes, progress)
    chosen, _ = without_labels(parent, cells.pixels, progress)
    with stage(progress, "embedding", len(cells)):
        features = steps.features_of(chosen.network, cells.pixels)
    probabilities = steps.logits_of(chosen.network, features).softmax(1).double().numpy()
    rows = choose_cells(features.double().numpy(), probabilities, count)
    table = _table(cells, rows, probabilities, parent.classes)
    told = _told(rows, probabilities, parent.classes)
    _write(output, cells, rows, table, told, folder)
    again = f"{command(parent, data)} --labels {shlex.quote(str(output / TABLE))}"
    return Suggested(output, table, again)


def choose_cells(
    features: npt.NDArray[np.floating[Any]], probabilities: npt.NDArray[np.floating[Any]], count: int, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Places of the cells to label, the most useful first.

    Args:
        features: (n, d).
        probabilities: (n, classes).
        count: how many; all if there are fewer.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    predicted, doubt = probabilities.argmax(axis=1), entropy(probabilities) + 1e-3
    spread = features.std(axis=0)
    scaled = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1)
    queues = [
        _in_order(scaled[rows], doubt[rows], min(count, len(rows)), generator, rows)
        for rows in (np.flatnonzero(predicted == place) for place in range(probabilities.shape[1]))
    ]
    turns = sorted((turn, place, row) for place, queue in enumerate(queues) for turn, row in enumerate(queue))
    return np.array([row for _, _, row in turns[:count]], dtype=np.int64)


def _in_order(
    features: npt.NDArray[np.float64],
    doubt: npt.NDArray[np.floating[Any]],
    count: int,
    generator: np.random.Generator,
    rows: npt.NDArray[np.int64],
) -> list[int]:
    """`count` of the cells: the most central one, then drawn by squared distance to those before times doubt."""
    if not count:
        return []
    first = int(((features - features.mean(axis=0)) ** 2).sum(axis=1).argmin())
    chosen, nearest = [first], ((features - features[first]) ** 2).sum(axis=1)
    while len(chosen) < count:
        weights = nearest * doubt
        weights[chosen] = 0
        if not weights.sum():  # all that is left are copies of chosen ones
            weights = np.ones(len(features))
            weights[chosen] = 0
        pick = int(generator.choice(len(features), p=weights / weights.sum()))
        chosen.append(pick)
        nearest = np.minimum(nearest, ((features - features[pick]) ** 2).sum(axis=1))
    return [int(rows[place]) for place in chosen]


def _table(
    cells: Cells, rows: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], classes: Sequence[str]
) -> pd.DataFrame:
    best = probabilities[rows].argmax(axis=1)
    return pd.DataFrame(
        {
            "path": [cells.names[row] for row in rows],
            "label": "",
            "predicted": [classes[place] for place in best],
            "confidence": probabilities[rows, best].round(3),
            "copy": [_copy_of(number, cells.names[row]) for number, row in enumerate(rows, start=1)],
        }
    )


def _told(
    rows: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64], classes: Sequence[str]
) -> list[list[tuple[str, float]]]:
    likeliest = np.argsort(-probabilities[rows], axis=1, kind="stable")[:, :_TOLD]
    return [
        [(classes[place], float(probabilities[row, place])) for place in places]
        for row, places in zip(rows, likeliest, strict=True)
    ]


def _copy_of(number: int, name: str) -> str:
    """Path of a copy in the output; an array becomes a PNG."""
    plain = PurePosixPath(name).name
    return f"{COPIES}/{number:03d}_{plain if PurePosixPath(plain).suffix else f'{plain}.png'}"


def _refuse_full(output: Path) -> None:
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise HemafastError(f"{output} is not an empty folder.", "Name another one with --output.")


def _write(
    output: Path,
    cells: Cells,
    rows: npt.NDArray[np.int64],
    table: pd.DataFrame,
    told: Sequence[Sequence[tuple[str, float]]],
    run: Path,
) -> None:
    """Copies, table and page, all or nothing."""
    make_folder(output)
    pictures = [embedded_pixels(_shown(cells.pixels[int(row)]), _SIDE) for row in rows]
    shown = [
        {"picture": picture, "told": classes, **row}
        for picture, classes, row in zip(pictures, told, table.to_dict("records"), strict=True)
    ]
    page = render("transfer/label.html.j2", run=str(run), cells=shown, table=TABLE)
    with writing(output), tempfile.TemporaryDirectory(dir=output, prefix=".suggest-") as room:
        _copy(Path(room), cells, rows, table["copy"].tolist())
        Path(room, TABLE).write_bytes(csv_bytes(table))
        Path(room, PAGE).write_text(page, encoding="utf-8")
        for path in list(Path(room).iterdir()):
            shutil.move(path, output / path.name)


def _copy(room: Path, cells: Cells, rows: npt.NDArray[np.int64], copies: Sequence[str]) -> None:
    from PIL import Image as Picture

    (room / COPIES).mkdir()
    order = sorted(range(len(rows)), key=lambda place: int(rows[place]))  # so that an archive is read once
    contents = read_images([cells.images[int(rows[place])] for place in order])
    for place, data in zip(order, contents, strict=True):
        if isinstance(data, bytes):
            (room / copies[place]).write_bytes(data)
        elif isinstance(data, np.ndarray):
            Picture.fromarray(data).save(room / copies[place])


def _shown(pixels: Tensor) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())
