"""What nuclei and red cells say about the scale of prepared images, as if nothing else were known of it.

    python benchmarks/scale.py Acevedo/prepared Matek/prepared --run RUN --json benchmarks/results/scale.json

For each domain: the estimate from all images, from the images of each class alone, and from random samples of 30
images, beside the scale that is known of it. With a run, the same with the classes that its model
predicts, of images that it was not trained on, and its macro-F1 at each scale. Refuses drawn cells.
"""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from another_lab import LABS, Lab  # scripts beside this one
from output import JsonFile, write_json
from scale_tables import OF_IMAGES, root_mean_square

import hemafast as hf
from hemafast.deploy.scales import CLASSIFIED, by_classes
from hemafast.evaluate.folding import fold_classes
from hemafast.preparation import schema
from hemafast.preparation.images.depth import spread
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.scale import Encoded, Measured, ScaleEstimate, estimate_from, measure_encoded

NEAR = 0.2
"""Share by which an estimate may differ from the known scale."""


Cells = Sequence[Measured]
Estimate = Callable[[Cells], ScaleEstimate]


def main(
    data: Annotated[list[Path], typer.Argument(help="Prepared data sets.")],
    json_file: JsonFile,
    run: Annotated[Path | None, typer.Option(help="Evaluated run, to predict classes with.")] = None,
    samples: Annotated[int, typer.Option(min=1, help="Random samples of each domain.")] = 100,
    given: Annotated[list[str], typer.Option(help="NAME=UM_PER_PIXEL, taken as known; may be repeated.")] = [],  # noqa: B006
) -> None:
    """Measure the nuclei and red cells of all images, and write what they say."""
    taken = {name: float(scale) for name, _, scale in (one.partition("=") for one in given)}
    model = None if run is None else hf.open_model(run, device="cpu")
    domains: dict[str, Any] = {}
    for folder in data:
        dataset = hf.open_dataset(folder)
        if dataset.info.drawn:
            sys.exit(f"{folder} holds drawn cells; their nuclei say nothing.")
        for label, rows in schema.accepted(dataset.table).groupby("domain"):
            name = str(label)
            known = taken.get(name) or _known(dataset.info.domains[name])
            domains[name] = _measured(_cells(folder, rows), rows["label"], known, samples, estimate_from)
            if model is not None:
                domains[name]["with_classes"] = _with_model(model, dataset, rows, known, samples)
    options = [] if run is None else ["--run", "RUN"]
    options += [word for one in given for word in ("--given", one)] + ["--samples", str(samples)]
    command = shlex.join(["python", "benchmarks/scale.py", *(folder.name for folder in data), *options])
    write_json({"command": command, "hemafast": hf.__version__, "domains": domains}, json_file)


def _known(info: schema.DomainInfo) -> float | None:
    return None if info.scale is None or info.scale.source == "estimated" else info.um_per_pixel


def _cells(folder: Path, rows: pd.DataFrame, *, keep: bool = False) -> Cells:
    """The nucleus of each image; with its pixels, if they are kept."""
    files = (folder / path for path in rows["path"])
    with strict_decoders():
        return measure_encoded((Encoded(file.read_bytes(), file.name, {}, keep=keep) for file in files), threads=1)


def _measured(
    cells: Cells, labels: pd.Series[str], known: float | None, samples: int, estimate: Estimate
) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    drawn = [generator.permutation(len(cells))[:OF_IMAGES].tolist() for _ in range(samples)]
    found = [estimate([cells[row] for row in rows]) for rows in drawn]
    scales = [one.um_per_pixel for one in found if one.um_per_pixel is not None]
    return {
        "known": known,
        "all": _plain(estimate(cells)),
        "by_class": {
            str(name): _plain(estimate([cells[row] for row in np.flatnonzero(labels == name).tolist()]))
            for name in sorted(set(labels))
        },
        "samples": {
            "images": OF_IMAGES,
            "drawn": samples,
            "near": None if known is None else sum(abs(one / known - 1) <= NEAR for one in scales),
            "held": None if known is None else sum(one.um_per_pixel is not None and one.holds(known) for one in found),
            "rms": None if known is None else root_mean_square(scales, known),
            "least": min(scales, default=None),
            "most": max(scales, default=None),
        },
    }


def _with_model(
    model: hf.Model, dataset: hf.Dataset, rows: pd.DataFrame, known: float | None, samples: int
) -> dict[str, Any]:
    """The same with predicted classes, of images that the model was not trained on; and its scores."""
    if dataset.info.fingerprint == model.card.data_fingerprint:
        rows = rows[rows["split"] == "val"]
    cells = _cells(dataset.folder, rows, keep=True)

    def estimate(some: Cells) -> ScaleEstimate:
        return by_classes(estimate_from(some), spread([one for one in some if one.nucleus], CLASSIFIED), [model])

    found = _measured(cells, rows["label"], known, samples, estimate)
    first = _measured(cells, rows["label"], known, samples, estimate_from)
    scales = {"known": known, "sizes": first["all"]["um_per_pixel"], "classes": found["all"]["um_per_pixel"]}
    scores = {name: scale and _macro_f1(model, dataset, rows, scale) for name, scale in scales.items()}
    return found | {"first": first, "macro_f1": scores}


def _macro_f1(model: hf.Model, dataset: hf.Dataset, rows: pd.DataFrame, um_per_pixel: float) -> float:
    """Over the classes of the domain; neutrophils are one class where the laboratory does not tell them apart."""
    from sklearn.metrics import f1_score

    lab = LABS.get(str(rows["domain"].iloc[0]), Lab())
    counts = Counter(rows["label"].tolist())
    folding, names = fold_classes(model.classes, counts, lab.class_map), list(counts)
    labels = folding.labels[[names.index(name) for name in rows["label"]]]
    table = model.predict([dataset.folder / path for path in rows["path"]], um_per_pixel=um_per_pixel)
    answers = folding.probabilities(table[list(model.classes)].to_numpy()).argmax(axis=1)
    some = labels >= 0
    present = np.unique(labels[some])
    return float(f1_score(labels[some], answers[some], labels=present, average="macro", zero_division=0))


def _plain(estimate: ScaleEstimate) -> dict[str, Any]:
    return {name: value for name, value in asdict(estimate).items() if name != "by_side"}


if __name__ == "__main__":
    typer.run(main)
