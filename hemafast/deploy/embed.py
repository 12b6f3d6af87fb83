"""Features of images beside what the model answers, from one pass; written as one table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from torch import Tensor

from hemafast.deploy.eval_graph import EvalGraph
from hemafast.deploy.inputs import Image
from hemafast.deploy.labels import Told
from hemafast.deploy.model import Model
from hemafast.deploy.plan import Options, plan_for
from hemafast.deploy.predict import inferred
from hemafast.evaluate.predictions import prediction_table
from hemafast.files import refuse_name, write_whole
from hemafast.preparation.images.image_checks import Pixels
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted

FEATURES = "features"
"""Column, or array, of the features."""
FORMATS = (".npz", ".parquet")
"""Suffixes of the files that `write_embeddings` writes."""

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, eq=False)
class Embeddings:
    """Images as a model sees them."""

    table: pd.DataFrame
    """One row per image: image, error (empty if it could be read), predicted, confidence (0 to 1), likeness (as
    `Model.predict` has it)."""
    features: npt.NDArray[np.float32]
    """(n, d): what the network's last layer classifies; nan for unreadable images."""
    tiles: npt.NDArray[np.uint8]
    """(n, side, side, 3): small pictures; black for unreadable images. Side is 0 if none are asked for."""

    @property
    def readable(self) -> npt.NDArray[np.bool_]:
        """(n,)."""
        return np.asarray(self.table["error"] == "")

    def of_readable(self) -> Embeddings:
        """Those images alone that could be read."""
        kept = self.readable
        return Embeddings(self.table[kept].reset_index(drop=True), self.features[kept], self.tiles[kept])

    def told(self, told: Told) -> Embeddings:
        """With the columns label, group and domain behind image."""
        table = self.table.copy()
        for place, (name, values) in enumerate(zip(("label", "group", "domain"), told, strict=True), start=1):
            table.insert(place, name, values)
        return replace(self, table=table)


def embed_images(
    model: Model, images: Sequence[Image], options: Options | None = None, *, tile: int = 0, progress: Progress = SILENT
) -> Embeddings:
    """Features of images, and what the model answers.

    Args:
        model: a model with a network.
        images: as `inputs.list_inputs` lists them.
        options: scale, bit depth and batch size.
        tile: side of the small pictures in pixels; 0 for none.
        progress: listens to the number of images done.

    Raises:
        HemafastError: options do not fit the model, or it is an exported graph.
    """
    _ = model.network  # refuses graphs before anything is read
    options = options or Options()
    plan = plan_for([model], images, options)
    (group,) = plan.groups
    graph = EvalGraph(model.card, model.machine, options.batch_size)
    columns = len(model.classes) + 1 + model.features(graph(_black(group.size))).shape[1]
    tiles = np.zeros((len(plan.images), tile, tile, 3), np.uint8)
    shrunk: list[list[Pixels]] = []  # of batches that were computed, and whose rows are not known yet

    def compute(squares: Sequence[Pixels]) -> Tensor:
        shrunk.append([_shrunk(square, tile) for square in squares] if tile else [])
        return model.described(graph(squares))

    found: list[npt.NDArray[np.float32]] = []
    errors: dict[int, str] = {}
    with stage(progress, "embedding", len(plan.images)), inferred(plan, group, compute, progress) as parts:
        for part in parts:
            found.append(part.filled(columns))
            errors |= part.errors
            if part.good:
                tiles[list(part.good)] = shrunk.pop(0) if tile else 0
    names = [image.name for image in plan.images]
    _warn(errors, names)
    every = np.concatenate(found)
    probabilities, likeness, features = np.split(every, [len(model.classes), len(model.classes) + 1], axis=1)
    said = {"image": names, "error": [errors.get(row, "") for row in range(len(names))]}
    table = prediction_table(model.classes, probabilities, said)[[*said, "predicted", "confidence"]]
    table = table.assign(likeness=likeness[:, 0])
    return Embeddings(table, np.ascontiguousarray(features), tiles)


def _black(side: int) -> list[Pixels]:
    return [np.zeros((side, side, 3), np.uint8)]


def _shrunk(square: Pixels, side: int) -> Pixels:
    from PIL import Image

    return np.asarray(Image.fromarray(square).resize((side, side), Image.Resampling.BOX))


def _warn(errors: Mapping[int, str], names: Sequence[str]) -> None:
    if errors:
        row, error = min(errors.items())
        first = f"{names[row]}: {error}"
        logger.warning("%d of %s cannot be read; the first is %s", len(errors), counted(len(names), "image"), first)


def refuse_embeddings_name(file: Path) -> None:
    """Raise HemafastError if `write_embeddings` cannot write `file`: a folder, or a suffix that is not in `FORMATS`."""
    refuse_name(file, FORMATS, "embeddings.parquet")


def write_embeddings(file: Path, embeddings: Embeddings) -> None:
    """Write the table and the features, whole or not at all.

    A .parquet file has a column of float32 lists, and a .npz file has an array (n, d), both named FEATURES; an .npz
    file needs no pickle. Raises OSError if the file cannot be written.
    """
    writer = _write_npz if file.suffix.lower() == ".npz" else _write_parquet
    write_whole(file, lambda part: writer(part, embeddings))


def _write_npz(file: Path, embeddings: Embeddings) -> None:
    table = embeddings.table
    arrays: dict[str, Any] = {
        name: table[name].to_numpy(np.float32 if table[name].dtype.kind == "f" else str) for name in table.columns
    }
    arrays[FEATURES] = embeddings.features
    with file.open("wb") as opened:
        np.savez(opened, **arrays)


def _write_parquet(file: Path, embeddings: Embeddings) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pandas(embeddings.table, preserve_index=False)
    flat = pa.array(embeddings.features.ravel())
    lists = pa.FixedSizeListArray.from_arrays(flat, embeddings.features.shape[1])
    parquet.write_table(table.append_column(FEATURES, lists), file)
