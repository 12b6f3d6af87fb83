"""Predictions in the format of the challenge "Help a Hematologist Out": Image, Label, LabelID."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

import pandas as pd

from hemafast.deploy.inputs import begins_formula
from hemafast.errors import HemafastError
from hemafast.taxonomy import SUBMISSION_CLASSES


def refuse_submission(images: Iterable[str], classes: Sequence[str], threshold: float | None) -> None:
    """Raise HemafastError for what cannot be submitted: other classes, abstention, or two images of the same name.

    `images` are paths; a submission holds only their file names.
    """
    if set(classes) != set(SUBMISSION_CLASSES):
        raise HemafastError(
            f"The classes of the model, {', '.join(classes)}, are not those of the challenge.",
            "Leave out --submission.",
        )
    if threshold is not None:
        raise HemafastError("A submission needs a class for every image.", "Leave out --submission, or do not abstain.")
    seen: dict[str, str] = {}
    for image in images:
        name = posixpath.basename(image)
        if name in seen:
            raise HemafastError(
                f"{seen[name]} and {image} would both be {name} in a submission.", "Predict on one of the two folders."
            )
        if begins_formula(name):
            raise HemafastError(f"A spreadsheet would take the name {name!r} for a formula.", "Rename it.")
        seen[name] = image


def submission_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """The rows of `predict.Predictions.table` that have a class, as Image, Label, LabelID."""
    answered = predictions[predictions["predicted"] != ""]
    labels = answered["predicted"].tolist()
    return pd.DataFrame(
        {
            "Image": [posixpath.basename(image) for image in answered["image"]],
            "Label": labels,
            "LabelID": [SUBMISSION_CLASSES.index(label) for label in labels],
        }
    )
