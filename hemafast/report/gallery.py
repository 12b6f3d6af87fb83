"""The cells that a page shows: mistakes first, with pictures of as many as asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.data.dataset import Dataset, open_dataset
from hemafast.errors import HemafastError
from hemafast.evaluate.predictions import read_predictions
from hemafast.pictures import embedded_pixels

LISTED = 5000
"""Cells listed on a page; beyond it, the most confident right answers are left out."""
_SIDE = 72  # px: side of a thumbnail
_TOLD = 3  # classes shown with their probability


@dataclass(frozen=True)
class Gallery:
    """The predictions of a run, in the order of the page."""

    table: pd.DataFrame
    """Rows of predictions.csv: mistakes, the most confident first; then right answers, the least confident first."""
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float64]
    """(images, classes), in the order of `table`."""
    images: int
    """Number of all predictions; the table has at most LISTED."""
    rows: npt.NDArray[np.int64]
    """Rows of the manifest; none without the data set."""
    dataset: Dataset | None

    @property
    def wrong(self) -> npt.NDArray[np.bool_]:
        """(images,): which predictions are mistakes."""
        return np.asarray(self.table["label"] != self.table["predicted"])

    def mistakes(self, most: int) -> int:
        """How many of the first `most` cells are mistakes."""
        return min(int(self.wrong.sum()), most)

    def thumbnails(self, most: int) -> list[str]:
        """Pictures of the first `most` cells as data URLs; none without the data set."""
        return [embedded_pixels(self._pixels(place), _SIDE) for place in range(min(most, len(self.rows)))]

    def views(self, places: Sequence[int], size: int) -> npt.NDArray[np.uint8]:
        """What the model sees of the cells at `places`: uint8 (n, size, size, 3)."""
        from PIL import Image

        from hemafast.data.geometry import centre_windows

        def view(place: int) -> npt.NDArray[np.uint8]:
            square = self._pixels(place)
            top, left, bottom, right = centre_windows(len(square), 1)[0].astype(int)
            window = Image.fromarray(square[top:bottom, left:right])
            return np.asarray(window.resize((size, size), Image.Resampling.BILINEAR))

        return np.stack([view(place) for place in places])

    def told(self, place: int) -> list[tuple[str, float]]:
        """The most probable classes of a cell, with their probabilities."""
        likeliest = np.argsort(-self.probabilities[place], kind="stable")[:_TOLD]
        return [(self.classes[index], float(self.probabilities[place, index])) for index in likeliest]

    def _pixels(self, place: int) -> npt.NDArray[np.uint8]:
        assert self.dataset is not None
        return self.dataset.files.packed[max(self.dataset.info.pack_sizes)][self.rows[place]]


def open_gallery(predictions: Path, data: Path, fingerprint: str) -> Gallery:
    """Predictions, with the data set if it still exists unchanged. Raises HemafastError if they cannot be read."""
    table, classes, probabilities = read_predictions(predictions)
    wrong = (table["label"] != table["predicted"]).to_numpy()
    confidence = table["confidence"].astype(float).to_numpy()
    order = np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))[:LISTED]
    chosen = table.iloc[order].reset_index(drop=True)
    dataset = _open_if_same(data, fingerprint)
    place = {} if dataset is None else _places(dataset.files.images["path"], chosen["image"])
    there = dataset is not None and set(chosen["image"]) <= set(place)
    rows = np.array([place[path] for path in chosen["image"] if there], dtype=np.int64)
    return Gallery(chosen, classes, probabilities[order], len(table), rows, dataset if there else None)


def _places(paths: pd.Series[str], chosen: pd.Series[str]) -> dict[str, int]:
    """The rows of some images in the manifest, by path."""
    return {str(path): int(row) for row, path in paths[paths.isin(chosen)].items()}  # type: ignore[call-overload]


def listing(gallery: Gallery, pictures: Sequence[str], overlays: Sequence[str] = ()) -> dict[str, Any]:
    """Plain data for the page's script, compact where it repeats for each cell.

    `pictures` and `overlays` are data URLs of the first cells.
    """
    class_of = {name: index for index, name in enumerate(gallery.classes)}
    places, domains = pd.factorize(gallery.table["domain"], sort=True)
    columns = (gallery.table["label"], gallery.table["predicted"], places.tolist(), gallery.table["image"])
    return {
        "classes": list(gallery.classes),
        "domains": list(domains),
        "pictures": list(pictures),
        "overlays": list(overlays),
        "cells": [
            [
                class_of[label],
                class_of[predicted],
                domain,
                str(image).removeprefix("images/"),
                [[class_of[name], round(share, 3)] for name, share in gallery.told(place)],
            ]
            for place, (label, predicted, domain, image) in enumerate(zip(*columns, strict=True))
        ],
    }


def _open_if_same(data: Path, fingerprint: str) -> Dataset | None:
    try:
        dataset = open_dataset(data)
    except HemafastError:
        return None
    return dataset if dataset.info.fingerprint == fingerprint else None
