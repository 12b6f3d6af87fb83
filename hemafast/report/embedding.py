"""`hemafast embed`: features of images as a table, what they tell about labels, and a map of the cells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hemafast.deploy.embed import Embeddings, embed_images, refuse_embeddings_name, write_embeddings
from hemafast.deploy.inputs import Images, list_inputs
from hemafast.deploy.labels import Given, named_as, read_told
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options
from hemafast.evaluate.probe import probe
from hemafast.files import make_folder, writing
from hemafast.preparation.tables.lists import read_class_map
from hemafast.progress import SILENT, Progress, stage
from hemafast.report.map import plane_of, require_umap, tile_side, write_map

_PROBES = {"knn": "nearest neighbours", "linear": "linear probe"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """What a user says of the images."""

    labels: Given = None
    columns: Mapping[str, str] | None = None
    """Names of columns of a table of labels, by role."""
    groups: Path | None = None
    """Table of patients or slides."""
    class_map: Mapping[str, str] | Path | None = None
    """New names of labels by their old ones; "" leaves a class out."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What was written, and what it tells."""

    output: Path
    page: Path | None
    images: int
    unreadable: int
    dimensions: int
    probed: dict[str, Any] | None
    """As `probe` has it; None without labels, or with too few."""

    def to_plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {
            "output": str(self.output),
            "map": None if self.page is None else str(self.page),
            "images": self.images,
            "unreadable": self.unreadable,
            "dimensions": self.dimensions,
            "probe": self.probed,
        }

    def lines(self) -> list[str]:
        """The same in words."""
        said = [f"{self.images:,} images, {self.dimensions:,} features each: {self.output}"]
        if self.unreadable:
            said.append(f"{self.unreadable:,} of them cannot be read; the column error says why")
        if self.probed is not None:
            folds = f"{self.probed['folds']} folds of {self.probed['images']:,} images, groups apart"
            said += [f"{name}: {_scores(self.probed[key])}; {folds}" for key, name in _PROBES.items()]
        return said if self.page is None else [*said, str(self.page)]


def _scores(found: Mapping[str, Any]) -> str:
    def one(name: str, title: str) -> str:
        low, high = found["ci95"][name]
        return f"{title} {found[name]:.3f} ({low:.3f} to {high:.3f})"

    return f"{one('accuracy', 'accuracy')}, {one('macro_f1', 'macro-F1')}"


def embed_to(
    output: Path,
    folder: Path,
    images: Images,
    named: Named,
    options: Options,
    *,
    page: Path | None = None,
    progress: Progress = SILENT,
) -> Embedded:
    """Write features and answers of images to `output`, and a map of the cells to `page`.

    Args:
        output: .parquet or .npz; see `deploy.embed.write_embeddings`.
        folder: run folder of the model, or its file.
        images: as `Model.predict` takes them.
        named: labels and groups of the images.
        options: scale, bit depth, batch size and device.
        page: the map; None for none.
        progress: listens to every stage.

    Returns:
        What was written, with the scores of `evaluate.probe.probe` where labels are known.

    Raises:
        HemafastError: a model, image, table or package is missing or does not fit, or a file cannot be written.
    """
    refuse_embeddings_name(output)
    if page is not None:
        require_umap()
    class_map = read_class_map(named.class_map or {})
    model = open_model(folder, device=options.device, amp=options.amp)
    listed = list_inputs(images)
    names = [image.name for image in listed]
    classes = [*model.classes, *class_map]
    told = read_told(names, named.labels, columns=named.columns, groups=named.groups, classes=classes)
    told = told._replace(labels=named_as(model.classes, told.labels, class_map))
    for file in (output, page):
        if file is not None:
            make_folder(file.parent)
    tile = 0 if page is None else tile_side(len(listed))
    found = embed_images(model, listed, options, tile=tile, progress=progress).told(told)
    readable = found.of_readable()
    probed = _probed(readable, progress)
    points = None if page is None else plane_of(readable.features, progress=progress)
    with writing(output):
        write_embeddings(output, found)
    if page is not None and points is not None:
        write_map(page, readable.table, points, readable.tiles, title=f"Seen by {folder}")
    unreadable = len(found.table) - len(readable.table)
    return Embedded(output, page, len(found.table), unreadable, found.features.shape[1], probed)


def _probed(found: Embeddings, progress: Progress) -> dict[str, Any] | None:
    known = np.asarray(found.table["label"] != "")
    table = found.table[known]
    if table.empty:
        return None
    with stage(progress, "probing"):
        return probe(found.features[known], table["label"].tolist(), table["group"].tolist())
