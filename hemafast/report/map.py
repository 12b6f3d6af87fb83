"""A map of cells: features in two dimensions, on a page that shows the cell under the pointer."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.errors import HemafastError, require
from hemafast.files import write_text, writing
from hemafast.pages import render
from hemafast.pictures import data_address
from hemafast.progress import SILENT, Progress, stage

FEWEST = 10
"""Cells that a map needs."""
_AXES = 50  # principal axes that UMAP sees: more take time and change little
_NEIGHBOURS = 15
_ATLAS = (
    1024  # px: side of a picture with many tiles. A browser decodes it within a frame, and only when it is asked for
)
_QUALITY = 75  # of the JPEGs
_STEPS = 65535  # positions along an axis
_COLOURED = ("label", "predicted", "domain", "mistake")


def tile_side(cells: int) -> int:
    """Side in pixels of the picture of each cell, so that a page stays below some 40 MB."""
    return 96 if cells <= 2000 else 64 if cells <= 10_000 else 40


def require_umap() -> None:
    """Import umap. Raises HemafastError if it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # of umap, about a part that needs Tensorflow
        require("map", "umap")


def plane_of(features: npt.NDArray[np.float32], seed: int = 0, progress: Progress = SILENT) -> npt.NDArray[np.float32]:
    """Features (n, d) in two dimensions, (n, 2), by UMAP (McInnes et al. 2018, arXiv 1802.03426) on their directions.

    Raises HemafastError if there are fewer than FEWEST, or without umap-learn.
    """
    require_umap()
    if len(features) < FEWEST:
        raise HemafastError(f"A map needs {FEWEST} images, and {len(features)} could be read.", "Leave out --map.")
    import umap
    from sklearn.decomposition import PCA

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, 1e-12)
    axes = min(_AXES, *features.shape)
    near = min(_NEIGHBOURS, len(features) - 1)
    with stage(progress, "drawing a map"):
        reduced = PCA(axes, random_state=seed).fit_transform(directions)
        found = umap.UMAP(n_neighbors=near, init="pca", random_state=seed, n_jobs=1).fit_transform(reduced)
    return np.asarray(found, np.float32)


def write_map(
    file: Path, table: pd.DataFrame, points: npt.NDArray[np.float32], tiles: npt.NDArray[np.uint8], *, title: str
) -> Path:
    """Write a page with a point for each cell; it needs no other file and no network.

    Args:
        file: the page.
        table: one row per cell: image, predicted, confidence, and perhaps label and domain.
        points: (n, 2).
        tiles: uint8 (n, side, side, 3): the picture of each cell.
        title: what the cells are.

    Returns:
        The page.

    Raises:
        HemafastError: the page cannot be written.
    """
    colours = _colours(table)
    listing = {
        "points": _whole(points),
        "columns": list(colours),
        "colours": colours,
        "names": table["image"].tolist(),
        "confidence": [round(float(value), 3) for value in table["confidence"]],
        "side": tiles.shape[1],
        "row": _ATLAS // tiles.shape[1],
    }
    page = render("report/map.html.j2", title=title, cells=len(table), listing=listing, atlases=_atlases(tiles))
    with writing(file, "Name another --map."):
        write_text(file, page)
    return file


def _whole(points: npt.NDArray[np.float32]) -> list[int]:
    """Points as whole numbers from 0, x and y in turn: the longer side of the map has _STEPS."""
    low, high = points.min(axis=0), points.max(axis=0)
    scale = _STEPS / max(float((high - low).max()), 1e-12)
    whole: list[int] = np.rint((points - low) * scale).astype(np.int64).ravel().tolist()
    return whole


def _colours(table: pd.DataFrame) -> dict[str, Any]:
    """What points can be coloured by: names, the most frequent first, and the place of each cell's among them."""
    known = table.assign(mistake=_mistakes(table)) if "label" in table else table
    found = {}
    for name in _COLOURED:
        values = known[name].replace("", "not known") if name in known else pd.Series(dtype=str)
        if values.nunique() > (name in ("domain", "mistake")):
            names = values.value_counts().index.tolist()
            places = {value: place for place, value in enumerate(names)}
            found[name] = {"names": names, "of": values.map(places).tolist()}
    return found


def _mistakes(table: pd.DataFrame) -> Sequence[str]:
    known, right = table["label"] != "", table["label"] == table["predicted"]
    said: list[str] = np.where(known, np.where(right, "right", "mistake"), "").tolist()
    return said


def _atlases(tiles: npt.NDArray[np.uint8]) -> list[str]:
    """JPEGs of _ATLAS pixels a side with the tiles of many cells each, as data URLs."""
    from PIL import Image

    side = tiles.shape[1]
    row = _ATLAS // side
    pictures = []
    for start in range(0, len(tiles), row * row):
        part = tiles[start : start + row * row]
        rows = -(-len(part) // row)
        sheet = np.zeros((rows * row, side, side, 3), np.uint8)
        sheet[: len(part)] = part
        joined = sheet.reshape(rows, row, side, side, 3).swapaxes(1, 2).reshape(rows * side, row * side, 3)
        encoded = io.BytesIO()
        Image.fromarray(joined).save(encoded, "JPEG", quality=_QUALITY)
        pictures.append(data_address(encoded.getvalue(), "jpeg"))
    return pictures
