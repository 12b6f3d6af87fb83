"""List the labels of a data set that are probably wrong, with a page of pictures and a table to correct them in.

Each label is judged by a regression on all other images, groups apart, from features of a network that knows nothing of
these labels (`evaluate.left_out`). A network trained on the labels would have learned its mistakes too.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from hemafast.config import Device
from hemafast.data.dataset import Dataset
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader
from hemafast.data.samples import Samples
from hemafast.deploy.model import open_model
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.errors import HemafastError
from hemafast.evaluate.left_out import LeftOut
from hemafast.evaluate.metrics import Labels
from hemafast.evaluate.suspects import label_quality, likeliest_other
from hemafast.files import csv_bytes, make_folder, write_bytes, write_text, writing
from hemafast.fuse_norm import fuse_batch_norms
from hemafast.model import build_model, quarter_turns
from hemafast.pages import render
from hemafast.pictures import embedded_pixels
from hemafast.preparation.schema import QUARANTINED
from hemafast.preparation.split import ALL, TEST
from hemafast.progress import SILENT, Progress, stage
from hemafast.weights import load_initial_weights

TABLE, PAGE = "suspects.csv", "audit.html"
NETWORK, SIZE = "tf_efficientnet_lite0", 224
"""What looks at the images by default, with ImageNet weights, and the side of its input in pixels."""
SHARE = 0.04
"""Share of the images that is listed by default; one at least."""

_BATCH = 64
_MOST_PICTURES = 500
_PICTURE = 96  # px
_CONTRADICTION = "contradiction"  # kind of quarantined images whose picture is also in another class

Features = npt.NDArray[np.floating[Any]]
"""(images, d)."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Suspicious labels, and where they are."""

    folder: Path
    table: pd.DataFrame
    """One row per suspect, the worst first: path, label (empty, to be filled in), given, suggested, quality, reason."""
    images: int
    """How many labels were judged."""
    judged_by: str
    unjudged: tuple[str, ...]
    """Classes with too few images to judge their labels."""
    again: str
    """The command that applies the corrections."""

    def to_plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {
            "folder": str(self.folder),
            "images": self.images,
            "judged_by": self.judged_by,
            "unjudged": list(self.unjudged),
            "suspects": self.table.to_dict("records"),
            "next": self.again,
        }

    def lines(self) -> list[str]:
        """What was found and what to do next, in words."""
        left = [f"not judged: {', '.join(self.unjudged)}, which have too few images"] if self.unjudged else []
        return [
            f"{len(self.table)} of {self.images} labels to look at again, the most suspicious first; judged by "
            f"{self.judged_by}",
            *left,
            f"look at    {self.folder / PAGE}",
            f"fill in    {self.folder / TABLE}, column label, where a label is wrong",
            f"then       {self.again}",
        ]


def audit(
    data: Dataset,
    output: Path,
    *,
    run: Path | None = None,
    count: int | None = None,
    device: Device = "auto",
    progress: Progress = SILENT,
) -> Audit:
    """Rank the labels of a data set by how probably they are wrong, and write TABLE and PAGE into `output`.

    Args:
        data: a prepared data set. The labels of all its images are judged, but those of test images.
        output: folder to write into.
        run: run folder of a network trained on other data, whose features are used; None for NETWORK with ImageNet
            weights.
        count: how many labels to list; None for SHARE of them.
        device: where the network runs.
        progress: listens to every stage.

    Returns:
        The suspects. Pictures that lie in two classes come first: `prepare` has quarantined them.

    Raises:
        HemafastError: there are no such weights, the run was trained on this data, the data has too few images, or
            `output` cannot be written.
    """
    rows = data.split(ALL)
    shown = (rows["split"] != TEST).to_numpy()  # a test whose labels were changed by what a model says is none
    samples, rows = data.samples(ALL, SIZE).select(np.flatnonzero(shown)), rows[shown]
    features, judged_by = features_of(data, samples, run, device, progress)
    labels, groups = samples.labels, rows["group"].tolist()
    places = judgeable(labels, groups)
    if not len(places):
        raise HemafastError(
            f"{data.folder} has too few images to judge their labels.", "Prepare two classes of several images each."
        )
    with stage(progress, "judging labels"):
        scores = LeftOut.of(features[places], [groups[place] for place in places])(labels[places], len(data.classes))
    quality = label_quality(labels[places], scores)
    worst = np.argsort(quality, kind="stable")[: max(1, round(SHARE * len(places))) if count is None else count]
    others = likeliest_other(labels[places[worst]], scores[worst])
    table = _table(data, rows.iloc[places[worst]], others, quality[worst])
    unjudged = tuple(data.classes[label] for label in np.setdiff1d(labels, labels[places]))
    _write(output, table, samples, places[worst], judged_by)
    again = f"hemafast prepare --source SOURCE --labels-fix {shlex.quote(str(output / TABLE))}"
    return Audit(output, table, len(places), judged_by, unjudged, again)


def judgeable(labels: Labels, groups: Sequence[str]) -> npt.NDArray[np.int64]:
    """Places of the images that can be judged: those of classes with images in two groups, if there are two such."""
    named = np.array(groups)
    judged = np.isin(labels, [label for label in np.unique(labels) if len(np.unique(named[labels == label])) > 1])
    return np.flatnonzero(judged) if len(np.unique(labels[judged])) > 1 else np.zeros(0, dtype=np.int64)


def features_of(
    data: Dataset, samples: Samples, run: Path | None, device: Device, progress: Progress = SILENT
) -> tuple[Features, str]:
    """Features (images, d) of `samples` of `data`, and what made them, in words; else as `audit`."""
    if run is not None:
        model = open_model(run, device=device, amp="off")
        if model.card.data_fingerprint == data.info.fingerprint:
            raise HemafastError(
                f"{run} was trained on {data.folder}: it has learned the wrong labels too.",
                "Leave out --run, or name a run on other data.",
            )
        features = _embedded(model.features, model.machine, samples, model.card.image_size, progress)
        return features, f"features of {run} ({model.card.backbone})"
    machine = choose_machine(device=device, amp="off", compiled="off", allocator=tune_allocator())
    network = build_model(NETWORK, len(data.classes), SIZE)
    origin = load_initial_weights(network.backbone, NETWORK, pretrained="yes", file=None)
    network.eval().to(machine.device).to(memory_format=torch.channels_last)
    fuse_batch_norms(network)

    def levels(images: Tensor) -> Tensor:  # cells have no up
        return torch.stack([network.levels(turned) for turned in quarter_turns(images)]).mean(0)

    return _embedded(levels, machine, samples, SIZE, progress), f"features of {NETWORK}, {origin.detail}"


@torch.inference_mode()
def _embedded(
    features: Callable[[Tensor], Tensor], machine: Machine, samples: Samples, size: int, progress: Progress
) -> Features:
    batch = min(_BATCH, len(samples))
    shape = GraphShape(machine.loader_device, "packed", samples.packed_size, size, batch, machine.loader_threads)
    found, rows = [], []
    with stage(progress, "embedding", len(samples)):
        for part in eval_loader(samples, shape=shape).epoch(0):
            found.append(features(part.images.contiguous(memory_format=torch.channels_last)).float().cpu())
            rows.append(part.rows.cpu())
            progress.advance(len(part.rows))
    return np.asarray(torch.cat(found)[torch.cat(rows).argsort()].numpy())


def _table(data: Dataset, rows: pd.DataFrame, others: Labels, quality: npt.NDArray[np.float64]) -> pd.DataFrame:
    """The suspects with the class that each may have instead, and before them the images that lie in two classes."""
    images = data.table[data.table["verdict"] == QUARANTINED]
    twice = images[images["kind"] == _CONTRADICTION]
    suggested = [data.classes[place] for place in others]
    ours = [
        {"path": path, "label": "", "given": given, "suggested": name, "quality": round(float(value), 4), "reason": ""}
        for path, given, name, value in zip(rows["path"], rows["label"], suggested, quality, strict=True)
    ]
    known = [
        {"path": path, "label": "", "given": given, "suggested": "", "quality": 0.0, "reason": reason}
        for path, given, reason in zip(twice["path"], twice["label"], twice["reason"], strict=True)
    ]
    return pd.DataFrame([*known, *ours], columns=["path", "label", "given", "suggested", "quality", "reason"])


def _write(output: Path, table: pd.DataFrame, samples: Samples, places: npt.NDArray[np.int64], judged_by: str) -> None:
    known = len(table) - len(places)
    shown = [
        {**row, "picture": embedded_pixels(np.asarray(samples.packed[int(place)]), _PICTURE)}
        for row, place in zip(table.iloc[known:].to_dict("records"), places[:_MOST_PICTURES], strict=False)
    ]
    page = render(
        "experiments/audit.html.j2",
        known=table.iloc[:known].to_dict("records"),
        cells=shown,
        suspects=len(places),
        table=TABLE,
        judged_by=judged_by,
    )
    make_folder(output)
    with writing(output):
        write_bytes(output / TABLE, csv_bytes(table))
        write_text(output / PAGE, page)
