"""`hemafast patients`: a differential count of each patient, labels of patients, and a page, in one folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hemafast.deploy.inputs import begins_formula
from hemafast.deploy.plan import Options
from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.intervals import plain
from hemafast.files import make_folder, write_table, write_text, writing
from hemafast.patients.attention import load_head, save_head
from hemafast.patients.cells import Cells, read_cells, read_patient_labels
from hemafast.patients.count import Counting, Patient, count_patients, hardly_known, lacking
from hemafast.patients.known import compare
from hemafast.patients.learned import Bags, Learned, applied, learn
from hemafast.patients.page import patients_page
from hemafast.progress import SILENT, Progress
from hemafast.report.embedding import Named
from hemafast.words import counted

TABLE, RESULT, PAGE, HEAD = "patients.csv", "patients.json", "patients.html", "head.safetensors"
"""Files of the folder that `count_to` writes; HEAD if labels were learned."""
SCHEMA = 1
"""Of RESULT."""

_DECIMALS = 3  # of TABLE; RESULT has them all
_SHOWN = 20  # patients on the terminal
_LARGEST = 4  # classes of a patient on the terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """Labels of patients to learn or to give; nothing of both by default."""

    labels: Path | None = None
    """Table of patient and label, to train a head on."""
    head: Path | None = None
    """A stored head, to apply."""

    def __post_init__(self) -> None:
        if self.labels is not None and self.head is not None:
            problem = f"{self.head} is applied, and {self.labels} trains another head."
            raise HemafastError(problem, "Leave out --head or --patient-labels.")

    @property
    def asked(self) -> bool:
        """Whether patients get labels."""
        return self.labels is not None or self.head is not None


@dataclass(frozen=True, slots=True)
class Counted:
    """What was written."""

    output: Path
    result: dict[str, Any]
    """The content of RESULT."""

    def to_plain(self) -> dict[str, Any]:
        """As plain data, ready for JSON."""
        return {"output": str(self.output), **self.result}

    def lines(self) -> list[str]:
        """The same in words: a line for each of the first patients, what labels say, notes, the files."""
        patients = self.result["patients"]
        said = [_line(one) for one in patients[:_SHOWN]]
        if len(patients) > _SHOWN:
            said.append(f"and {len(patients) - _SHOWN} more")
        if found := self.result["agreement"]:
            ends = "" if found["ci95"] is None else " ({:.1f} to {:.1f})".format(*found["ci95"])
            of = counted(found["patients"], "patient")
            said.append(f"against labels: {found['distance']:.1f} %{ends} of the leukocytes in the wrong class, {of}")
        if learned := self.result["labels"]:
            said += [learned["scores"]["verdict"]] if learned["scores"] else []
        return [*said, *self.result["notes"], str(self.output / PAGE)]


def _line(patient: Patient) -> str:
    largest = sorted(patient["classes"].items(), key=lambda one: -one[1]["count"])[:_LARGEST]
    shares = [f"{row['reported']:g} % {name}" for name, row in largest if row["count"]]
    apart = [f"{row['per_100']:.1f} {name} per 100" for name, row in patient["apart"].items() if row["per_100"]]
    calls = [
        f"{name} {'open at' if one['call'] == 'open' else one['call']} {one['limit']:g} %"
        for name, one in patient["calls"].items()
    ]
    label = patient.get("label")
    likeliest = [f"{label['likeliest']} ({label['probabilities'][label['likeliest']]:.2f})"] if label else []
    parts = [counted(patient["leukocytes"], "leukocyte"), ", ".join([*shares, *apart]), *calls, *likeliest]
    return f"{patient['patient']}: {'; '.join(filter(None, parts))}"


def count_to(
    output: Path,
    named: Sequence[str | Path],
    told: Named | None = None,
    options: Options | None = None,
    *,
    counting: Counting | None = None,
    diagnosis: Diagnosis | None = None,
    progress: Progress = SILENT,
) -> Counted:
    """Count the cells of each patient, and write TABLE, RESULT and PAGE, and HEAD if labels are learned.

    Args:
        output: the folder to write into.
        named: as `cells.read_cells` takes them.
        told: labels and patients of the images.
        options: scale, bit depth, batch size and device, for images.
        counting: how to count.
        diagnosis: labels of patients to learn or to give.
        progress: listens to every stage.

    Returns:
        What was written.

    Raises:
        HemafastError: something named is missing or does not fit, or a file cannot be written; then nothing is written.
    """
    diagnosis = diagnosis or Diagnosis()
    if output.exists() and not output.is_dir():
        raise HemafastError(f"{output} is a file.", "Name a folder with --output.")
    cells = read_cells(named, told or Named(), options, progress)
    counting = (counting or Counting()).checked(cells.classes)
    patients = count_patients(cells, counting)
    learned, bags = _learned(cells, patients, diagnosis, progress) if diagnosis.asked else (None, None)
    if learned is not None and bags is not None:
        patients = _with_labels(patients, learned, bags)
    result = _result(cells, counting, patients, learned)
    page = patients_page(result, cells, None if learned is None else _weights(cells, learned))
    make_folder(output)
    with writing(output):
        write_table(output / TABLE, table_of(patients))
        write_text(output / RESULT, json.dumps(result, indent=2, allow_nan=False) + "\n")
        write_text(output / PAGE, page)
        if learned is not None and learned.head is not None:
            save_head(output / HEAD, learned.head)
    return Counted(output, result)


def _result(cells: Cells, counting: Counting, patients: Sequence[Patient], learned: Learned | None) -> dict[str, Any]:
    notes = lacking(patients, cells)
    few = hardly_known(cells) if counting.adjust else []
    if few:
        notes.append(f"adjusted percentages of {name_some(few, 12)} mean little: there are few validation images")
    return {
        "schema": SCHEMA,
        "source": cells.source,
        "classes": counting.among(cells.classes),
        "apart": [name for name in cells.classes if name in counting.apart],
        "convention": counting.convention,
        "uncertain_below": cells.threshold,
        "adjusted": counting.adjust,
        "limits": dict(counting.limits),
        "patients": list(patients),
        "agreement": compare(patients, counting.among(cells.classes), counting.limits),
        "labels": None if learned is None else {"names": list(learned.labels), "scores": learned.scores},
        "notes": notes,
    }


def table_of(patients: Sequence[Patient]) -> pd.DataFrame:
    """One row per patient, as TABLE holds it. A name that a spreadsheet would calculate begins with an apostrophe."""
    return pd.DataFrame([_row(one) for one in patients]).round(_DECIMALS)


def _row(patient: Patient) -> dict[str, Any]:
    row: dict[str, Any] = {"patient": _no_formula(patient["patient"])}
    row |= {name: patient[name] for name in ("images", "unreadable", "uncalled", "cells", "uncertain", "unlike")}
    row["leukocytes"] = patient["leukocytes"]
    for name, one in patient["classes"].items():
        row |= _columns(name, one, "percent")
    for name, one in patient["apart"].items():
        row |= _columns(name, one, "per_100")
    for name, one in (patient["adjusted"] or {}).items():
        low, high = one["ci95"] or (None, None)
        row |= {f"{name}_adjusted": one["percent"], f"{name}_adjusted_low": low, f"{name}_adjusted_high": high}
    row |= {f"{name}_call": one["call"] for name, one in patient["calls"].items()}
    if "label" in patient:
        label = patient["label"] or {"likeliest": "", "probabilities": {}}
        row |= {"label": _no_formula(label["likeliest"])}
        row |= {f"label_{name}": share for name, share in label["probabilities"].items()}
    return {**row, "notes": "; ".join(patient["notes"])}


def _columns(name: str, one: Mapping[str, Any], unit: str) -> dict[str, Any]:
    low, high = one["ci95"] or (None, None)
    return {
        f"{name}": one["count"],
        f"{name}_{unit}": one[unit],
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _no_formula(text: str) -> str:
    return f"'{text}" if begins_formula(text) else text


def _learned(
    cells: Cells, patients: Sequence[Patient], diagnosis: Diagnosis, progress: Progress
) -> tuple[Learned, Bags]:
    if cells.features is None:
        raise HemafastError(
            f"{cells.source} holds no features, which labels of patients are learned from.",
            "Name a run and images, as `hemafast patients RUN IMAGES --patient-labels FILE`.",
        )
    bags = bags_of(cells, patients)
    if diagnosis.head is not None:
        return applied(load_head(diagnosis.head, cells.network), bags), bags
    assert diagnosis.labels is not None
    known = read_patient_labels(diagnosis.labels, bags.patients)
    return learn(bags, known, cells.network, progress=progress), bags


def _in_bags(cells: Cells) -> Any:
    return ((cells.table["patient"] != "") & (cells.table["error"] == "")).to_numpy()


def bags_of(cells: Cells, patients: Sequence[Patient]) -> Bags:
    """The patients of whom an image could be read."""
    assert cells.features is not None
    rows = cells.table[_in_bags(cells)]
    there = set(rows["patient"])
    chosen = [one for one in patients if one["patient"] in there]
    place = {one["patient"]: at for at, one in enumerate(chosen)}
    counts = np.array([[row["count"] for row in _counts(one).values()] for one in chosen], float)
    return Bags(
        tuple(place),
        np.ascontiguousarray(cells.features[_in_bags(cells)], np.float32),
        rows["patient"].map(place).to_numpy(np.int64, copy=True),
        counts / np.maximum(counts.sum(axis=1, keepdims=True), 1),
    )


def _counts(patient: Patient) -> dict[str, Any]:
    return {**patient["classes"], **patient["apart"]}


def _with_labels(patients: Sequence[Patient], learned: Learned, bags: Bags) -> list[Patient]:
    """The patients with `label`: likeliest and probabilities; None of whom nothing could be read."""
    told = {
        name: {
            "likeliest": learned.labels[int(row.argmax())],
            "probabilities": dict(zip(learned.labels, plain(row), strict=True)),
        }
        for name, row in zip(bags.patients, learned.probabilities, strict=True)
    }
    return [{**one, "label": told.get(one["patient"])} for one in patients]


def _weights(cells: Cells, learned: Learned) -> Any:
    """(images,): the attention that each image has among those of its patient; nan without any."""
    weights = np.full(len(cells.table), np.nan)
    weights[_in_bags(cells)] = learned.attention
    return weights
