"""Cells with their patients, and what a model says of them: from images, from a run, or from a table of predictions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.deploy.embed import embed_images
from hemafast.deploy.inputs import Images, list_inputs, refuse_unwritable
from hemafast.deploy.labels import named_as, read_told
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options
from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.likeness import LEAST_IMAGES
from hemafast.evaluate.predictions import read_predictions
from hemafast.preparation.sources.class_names import is_known
from hemafast.preparation.sources.containers import archive_suffix
from hemafast.preparation.sources.layout import read_layout
from hemafast.preparation.tables.columns import DOMAIN, GROUP, LABEL, find_columns
from hemafast.preparation.tables.lists import read_class_map, resolve_values, sha256_of
from hemafast.preparation.tables.read import read_table, whole
from hemafast.progress import SILENT, Progress
from hemafast.report.embedding import Named
from hemafast.run_folder import PREDICTIONS, read_metrics
from hemafast.words import counted

UNSURE = 0.5
"""Calls with a lower confidence are uncertain, if the model has no threshold of its own."""

_TILE, _SMALL_TILE, _MANY = 72, 32, 20_000  # px, px, images: pictures of many are small, since all stay in memory
_MODELS = (".safetensors", ".onnx", ".pt2")
_SHOWN = 4  # names in a message
_NAME_THEM = "Name a table of path and patient with --groups."

Table = pd.DataFrame
"""One row per cell: image, patient ("" if not known), domain and label ("" if not known), error ("" if it could be
read), predicted ("" without a call), confidence (0 to 1), likeness (nan if not known)."""

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells of patients, as a model sees them."""

    table: Table
    classes: tuple[str, ...]
    source: str
    """What was read."""
    threshold: float = UNSURE
    """Calls with a lower confidence are uncertain."""
    home: Table | None = None
    """Validation images of the run: image, label and predicted. None if no run is known."""
    home_images: int = LEAST_IMAGES
    """Images that likeness was learned from; the fewest there can be if that is not known."""
    features: npt.NDArray[np.float32] | None = None
    """(n, d); nan for unreadable images."""
    tiles: npt.NDArray[np.uint8] | None = None
    """(n, side, side, 3)."""
    network: str = ""
    """sha256 of the model's file, whose features these are."""


def read_cells(
    named: Sequence[str | Path] | Images, told: Named, options: Options | None = None, progress: Progress = SILENT
) -> Cells:
    """The cells of a run and images, of a run alone, or of a table of predictions.

    Args:
        named: a run and then images, as `predict` takes them; or a run, for its validation images; or a table that
            `predict` or `evaluate` wrote.
        told: labels and patients of the images.
        options: scale, bit depth, batch size and device, for images.
        progress: listens to the number of images done.

    Returns:
        The cells. Those without a patient are among them.

    Raises:
        HemafastError: a model, image or table is missing or does not fit, or no patient is known.
    """
    first, *rest = map(str, named) if not isinstance(named, str | Path) else [str(named)]
    if rest:
        return _of_images(Path(first), rest, told, options or Options(), progress)
    if Path(first).is_dir():
        return _of_run(Path(first), told)
    if Path(first).suffix in _MODELS:
        raise HemafastError(f"{first} is a model, and no images are named.", "Name images behind it.")
    table, classes, _ = read_predictions(Path(first), labelled=False)
    return _of_table(Path(first), table, classes, told)


def _of_images(folder: Path, images: Sequence[str], told: Named, options: Options, progress: Progress) -> Cells:
    model = open_model(folder, device=options.device, amp=options.amp)
    listed = list_inputs(list(images))
    names = [image.name for image in listed]
    known = _known(names, told, model.classes)
    patients = known.pop("patient")
    if not any(patients):
        patients = _folders_of(names, model.classes)
    found = embed_images(model, listed, options, tile=_TILE if len(listed) <= _MANY else _SMALL_TILE, progress=progress)
    table = found.table.assign(patient=_checked(patients), **known)
    calibration = model.card.calibration
    cells = Cells(
        table, model.classes, f"{folder} on {name_some(images, _SHOWN)}", features=found.features, tiles=found.tiles
    )
    return replace(
        cells,
        threshold=UNSURE if calibration is None or calibration.threshold is None else calibration.threshold,
        home=_home(model.file.parent),
        home_images=LEAST_IMAGES if model.likeness is None else model.likeness.images,
        network=sha256_of(model.file),
    )


def _of_run(folder: Path, told: Named) -> Cells:
    metrics, file = read_metrics(folder), folder / PREDICTIONS
    table, classes, _ = read_predictions(file)
    cells = _of_table(file, table, classes, told)
    calibration, likeness = metrics["model"]["calibration"], metrics.get("likeness")
    return replace(
        cells,
        threshold=calibration["threshold"] or UNSURE,
        home=cells.table,
        home_images=LEAST_IMAGES if likeness is None else likeness["fitted_on"],
    )


def _home(folder: Path) -> Table | None:
    """The validation images of a run; None if it was never evaluated."""
    try:
        return read_predictions(folder / PREDICTIONS)[0]
    except HemafastError:
        return None


def _of_table(file: Path, table: Table, classes: tuple[str, ...], told: Named) -> Cells:
    names = table["image"].tolist()
    known = _known(names, told, classes)
    own = _own_columns(file, names)
    texts = {name: known[name] if any(known[name]) else own.get(name, [""] * len(names)) for name in known}
    if not any(texts["patient"]):
        raise HemafastError(f"{file} does not say whose the {counted(len(names), 'image')} are.", _NAME_THEM)
    texts["label"] = named_as(classes, texts["label"], read_class_map(told.class_map or {}))
    numbers = {"confidence": table["confidence"], "likeness": _shares(file, table, "likeness")}
    said = {"image": names, "predicted": table["predicted"].tolist()}
    error = table["error"].tolist() if "error" in table else [""] * len(names)
    made = pd.DataFrame({**said, **texts, **numbers, "error": error})
    return Cells(made.assign(patient=_checked(made["patient"].tolist())), classes, str(file))


def _own_columns(file: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """Patient, label and domain as the table of predictions itself has them."""
    text = read_table(file)
    chosen = find_columns(file, text, needed=())
    of_image = dict(zip(text["image"], text.index, strict=True))
    rows = text.loc[[of_image[name.strip()] for name in names]]
    roles = {"patient": GROUP, "label": LABEL, "domain": DOMAIN}
    return {name: rows[chosen[role]].map(whole).tolist() for name, role in roles.items() if role in chosen}


def _shares(file: Path, table: Table, name: str) -> npt.NDArray[np.float64]:
    """A column of numbers from 0 to 1, nan where it is empty. Raises HemafastError for anything else in it."""
    if name not in table:
        return np.full(len(table), np.nan)
    numbers = pd.to_numeric(table[name].replace("", np.nan), errors="coerce").to_numpy(np.float64)
    wrong = ~((numbers >= 0) & (numbers <= 1)) & (table[name] != "").to_numpy()
    if wrong.any():
        row = int(wrong.argmax())
        problem = f"{file}: {name} of {table['image'].iloc[row]} is {str(table[name].iloc[row])!r}, not 0 to 1."
        raise HemafastError(problem, "Write the table with `hemafast predict` again.")
    return numbers


def _known(names: Sequence[str], told: Named, classes: Sequence[str]) -> dict[str, list[str]]:
    """Patient, label and domain of each image as the user says them; "" where nothing is said."""
    class_map = read_class_map(told.class_map or {})
    labels, groups, domains = read_told(names, told.labels, columns=told.columns, classes=[*classes, *class_map])
    patients = ["" if group == name else group for group, name in zip(groups, names, strict=True)]
    if told.groups is not None:
        found = resolve_values(told.groups, GROUP, {name: (name,) for name in names})
        for note in found.notes():
            logger.info("%s", note)
        patients = [found.values.get(name, "") for name in names]
    return {"patient": patients, "label": named_as(classes, labels, class_map), "domain": domains}


def _folders_of(names: Sequence[str], classes: Sequence[str]) -> list[str]:
    """The folder of each image as its patient: one named so, else the innermost that is not named as a class."""
    places = read_layout(names, lambda name: is_known(name) or name in classes, resplit=True, labelled=False).places
    groups = [place.group for place in places]
    if not all(groups):
        groups = _distinct([_around(name, classes) for name in names])
    found = sorted(set(groups) - {""})
    logger.info("patients are folders: %s", name_some(found, _SHOWN))
    if not found:
        raise HemafastError(f"{names[0]} is in no folder that could be of a patient.", _NAME_THEM)
    return groups


def _around(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The folders down to that of the patient, outermost first."""
    folders = [part for part in PurePosixPath(name).parts[:-1] if part not in ("/", ".", "..")]
    while folders and (is_known(folders[-1]) or folders[-1] in classes):
        folders.pop()
    return tuple(folder[: len(folder) - len(archive_suffix(folder))] or folder for folder in folders)


def _distinct(folders: Sequence[tuple[str, ...]]) -> list[str]:
    """The last name of each folder, or as many as tell them apart."""
    different = set(folders)
    deepest = max(map(len, different), default=0)
    parts = next((n for n in range(1, deepest) if len({one[-n:] for one in different}) == len(different)), deepest)
    return ["/".join(one[-parts:]) for one in folders]


def _checked(patients: list[str]) -> list[str]:
    for patient in dict.fromkeys(patients):
        refuse_unwritable(patient)
    return patients


def read_patient_labels(file: Path, patients: Sequence[str]) -> dict[str, str]:
    """The label of each of the `patients` that a table of patient and label lists.

    Raises:
        HemafastError: the table cannot be read, gives a patient two labels, or lists none of the patients.
    """
    table = read_table(file)
    chosen = find_columns(file, table, needed=(GROUP, LABEL))
    labels: dict[str, str] = {}
    for patient, label in zip(table[chosen[GROUP]].map(whole), table[chosen[LABEL]].map(whole), strict=True):
        if label and labels.setdefault(patient, label) != label:
            problem = f"{file}: {patient} is both {labels[patient]} and {label}."
            raise HemafastError(problem, "Remove one of them.")
    for label in sorted(set(labels.values())):
        refuse_unwritable(label)
    found = {patient: labels[patient] for patient in patients if patient in labels}
    if not found:
        listed, known = name_some(list(labels), _SHOWN) or "none", name_some(list(patients), _SHOWN)
        raise HemafastError(f"{file} lists none of the patients: {listed}.", f"Patients are named as {known}.")
    return found
