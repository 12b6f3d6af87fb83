"""How far differential counts are off, and what an attention head finds, on patients composed of real cells.

    python benchmarks/patients.py RUN --domain Acevedo_20 --json benchmarks/results/patients.json

No archive here says whose the cells are. So patients are composed of the validation images of RUN, which it was not
trained on. For counts, a cell may be of several patients, since each is counted alone; the mix is that of all cells, or
roughly that of blood. For labels, each cell is dealt to one patient: in the planted rule, half of the patients (ill)
get RICH of one class, the others POOR; without a rule, all get what comes. Compositions are drawn several times.
Refuses drawn cells.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFile, write_json

from hemafast.config import Device
from hemafast.data.dataset import open_dataset
from hemafast.deploy.embed import embed_images
from hemafast.deploy.inputs import list_inputs
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.predictions import read_predictions
from hemafast.patients.cells import Cells
from hemafast.patients.count import Counting, count_patients
from hemafast.patients.known import compare
from hemafast.patients.learned import LEVEL, learn
from hemafast.patients.written import bags_of
from hemafast.run_folder import PREDICTIONS, read_config, read_metrics

PATIENTS, CELLS = 24, 22
"""Of whom labels are learned."""
COUNTED = 20
"""Patients who are counted in each composition."""
SIZES = (25, 50)
"""Cells of a patient, for differentials."""
BLOOD = {
    "neutrophil_segmented": 0.55, "neutrophil_banded": 0.04, "lymphocyte_typical": 0.28, "monocyte": 0.08,
    "eosinophil": 0.03, "basophil": 0.01, "erythroblast": 0.01,
}  # fmt: skip
"""Shares as in the blood of the healthy, roughly."""
RICH, POOR = 6, 1
"""Cells of the class in ill patients and in the others."""


def main(
    run: Annotated[Path, typer.Argument(help="Evaluated run on real cells.")],
    json_file: JsonFile,
    domain: Annotated[str, typer.Option(help="The laboratory whose cells are dealt.")] = "Acevedo_20",
    rich: Annotated[str, typer.Option(help="The class that ill patients have more of.")] = "eosinophil",
    draws: Annotated[int, typer.Option(min=1, help="Compositions.")] = 5,
    device: Annotated[Device, typer.Option(help="Where the model runs.")] = "auto",
) -> None:
    """Compose patients, count them, learn their labels, and write the result."""
    home = open_dataset(read_config(run).data)
    if home.info.drawn:
        sys.exit("Drawn cells: no score on them is worth keeping.")
    cells = _validation_cells(run, home.folder, domain, device)
    result = {
        "command": f"python benchmarks/patients.py RUN --domain {domain} --rich {rich} --draws {draws}",
        "machine": machine_facts("cpu"),
        "run": {"model": read_metrics(run)["model"]["backbone"], "macro_f1": read_metrics(run)["pooled"]["macro_f1"]},
        "cells": len(cells.table),
        "draws": draws,
        "differentials": {
            mix: {str(size): [_counted(cells, shares, size, draw) for draw in range(draws)] for size in SIZES}
            for mix, shares in {"as at home": _at_home(cells), "as in blood": BLOOD}.items()
        },
        "labels": {
            "patients": PATIENTS,
            "cells": CELLS,
            "rich": rich,
            "planted": [_learned(cells, _planted(cells, rich, draw), draw) for draw in range(draws)],
            "none": [_learned(cells, _dealt(cells, CELLS, draw)[: PATIENTS * CELLS], draw) for draw in range(draws)],
        },
    }
    write_json(result, json_file)


def _validation_cells(run: Path, data: Path, domain: str, device: Device) -> Cells:
    table, classes, _ = read_predictions(run / PREDICTIONS)
    table = table[table["domain"] == domain].reset_index(drop=True)
    found = embed_images(
        open_model(run, device=device), list_inputs([data / path for path in table["image"]]), Options()
    )
    # By its files the domain is not known, and so not the scale: answers are those of the run's own evaluation.
    same = float((found.table["predicted"] == table["predicted"]).mean())
    print(f"{same:.1%} of the answers are those of the evaluation")
    made = table[["image", "domain", "label", "predicted", "confidence", "likeness"]].assign(error="", patient="")
    return Cells(made, classes, str(run), home=made, features=found.features, network="")


def _dealt(cells: Cells, size: int, draw: int) -> npt.NDArray[np.int64]:
    """Places of cells in random order, as many as fill patients of this size."""
    order = np.random.default_rng(draw).permutation(len(cells.table))
    return order[: len(order) // size * size]


def _planted(cells: Cells, rich: str, draw: int) -> npt.NDArray[np.int64]:
    """Places of the cells of one patient after the other; patients with an even number are ill."""
    generator = np.random.default_rng(draw)
    of_class = (cells.table["label"] == rich).to_numpy()
    some, others = (generator.permutation(np.flatnonzero(which)).tolist() for which in (of_class, ~of_class))
    places: list[int] = []
    for number in range(PATIENTS):
        take = (RICH, POOR)[number % 2]
        places += [some.pop() for _ in range(take)] + [others.pop() for _ in range(CELLS - take)]
    return np.array(places)


def _as_patients(cells: Cells, places: npt.NDArray[np.int64], size: int) -> Cells:
    names = [f"{number:02d}" for number in range(len(places) // size) for _ in range(size)]
    table = cells.table.iloc[places].assign(patient=names).reset_index(drop=True)
    assert cells.features is not None
    return replace(cells, table=table, features=cells.features[places])


def _at_home(cells: Cells) -> dict[str, float]:
    return {str(name): float(share) for name, share in cells.table["label"].value_counts(normalize=True).items()}


def _mixed(cells: Cells, shares: Mapping[str, float], size: int, draw: int) -> npt.NDArray[np.int64]:
    """Places of the cells of COUNTED patients. None has a cell twice, but several patients may have the same cell."""
    generator = np.random.default_rng(draw)
    weight = cells.table["label"].map(shares).fillna(0) / cells.table["label"].map(cells.table["label"].value_counts())
    odds = (weight / weight.sum()).to_numpy(np.float64)
    return np.concatenate([generator.choice(len(odds), size, replace=False, p=odds) for _ in range(COUNTED)])


def _counted(cells: Cells, shares: Mapping[str, float], size: int, draw: int) -> dict[str, Any]:
    counting = Counting(adjust=True).checked(cells.classes)
    dealt = _as_patients(cells, _mixed(cells, shares, size, draw), size)
    patients = count_patients(dealt, counting)
    found = compare(patients, counting.among(dealt.classes), counting.limits)
    assert found is not None
    return {
        "patients": len(patients),
        "distance": found["distance"],
        "adjusted": found["adjusted"]["distance"],
        "inside": found["inside"],
        "adjusted_inside": _adjusted_inside(patients),
    }


def _adjusted_inside(patients: Sequence[Mapping[str, Any]]) -> float:
    """The share of the adjusted intervals that hold the percentage of the labels."""
    hits: list[bool] = [
        row["ci95"][0] <= one["known"]["percent"][name] <= row["ci95"][1]
        for one in patients
        for name, row in one["adjusted"].items()
    ]
    return sum(hits) / len(hits)


def _learned(cells: Cells, places: npt.NDArray[np.int64], draw: int) -> dict[str, Any]:
    dealt = _as_patients(cells, places, CELLS)
    bags = bags_of(dealt, count_patients(dealt, Counting().checked(cells.classes)))
    labels = {name: ("ill", "well")[number % 2] for number, name in enumerate(bags.patients)}
    scores = learn(bags, labels, "", seed=draw).scores
    assert scores is not None
    p = scores["permutation"]["p"]
    simple = {name: scores[name]["auroc"] for name in ("means", "differential")}
    return {"auroc": scores["auroc"], "ci95": scores["ci95"]["auroc"], "p": p, "told": p <= LEVEL, **simple}


if __name__ == "__main__":
    typer.run(main)
