"""Scores of models trained on one domain and tested on another, over the classes that both have.

A class is *shared* if the model had training images of it and the test domain has validation images of it. The shared
score leaves images of other classes out of the test set. The model still answers among all classes, so an answer
outside the shared classes is an error. The score is scikit-learn's `f1_score(labels=shared, average="macro")` over the
remaining images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hemafast.data.samples import Samples
from hemafast.evaluate.metrics import count_scores
from hemafast.experiments.resampled import Estimate, Labels, Matrices, Scores, estimate, resampled_confusions

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Group:
    """One domain, or several pooled."""

    name: str
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Macro-F1 over some classes, and the number of their images."""

    macro_f1: Estimate
    images: int
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """How much better the model of the test domain does, on the same images and over the same classes."""

    in_domain: float | None
    here: float | None
    drop: Estimate
    """Their difference, with a paired interval."""
    classes: tuple[str, ...]
    """Classes that both models had training images of."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One model on one group of images."""

    trained_on: str
    tested_on: str
    shared: Score
    every: Score
    """Over all classes of the test images; a class that the model never saw scores 0."""
    drop: Drop | None
    """None for the model of the test domain itself, or without such a model."""


def score_cells(
    images: Samples,
    answers: Mapping[str, Labels],
    tested: Sequence[Group],
    known: Mapping[str, Mask],
    classes: Sequence[str],
) -> Iterator[Cell]:
    """A cell for each model of `answers` and each group of `tested`.

    `answers` holds the answers of each model to `images`, and `known` marks the classes (classes,) that it had training
    images of, both by the name of its training group.
    """
    for test in tested:
        rows = np.isin(images.domains, test.domains)
        asked = {name: calls[rows] for name, calls in answers.items()}
        matrices = resampled_confusions(images.labels[rows], asked, len(classes))
        present = np.bincount(images.labels[rows], minlength=len(classes)) > 0
        for name, mine in matrices.items():
            shared, drop = present & known[name], None
            if test.name != name and test.name in matrices:
                drop = _drop(matrices[test.name], mine, shared & known[test.name], classes)
            yield Cell(name, test.name, _score(mine, shared, classes), _score(mine, present, classes), drop)


def _score(matrices: Matrices, kept: Mask, classes: Sequence[str]) -> Score:
    return Score(estimate(_macro_f1(matrices, kept)), int(matrices[0][kept].sum()), _names(kept, classes))


def _drop(own: Matrices, other: Matrices, kept: Mask, classes: Sequence[str]) -> Drop:
    before, after = _macro_f1(own, kept), _macro_f1(other, kept)
    return Drop(
        in_domain=estimate(before).value,
        here=estimate(after).value,
        drop=estimate(before - after),
        classes=_names(kept, classes),
    )


def _macro_f1(matrices: Matrices, kept: Mask) -> Scores:
    """Macro-F1 over the images of the kept classes: the rows of the others are emptied."""
    return count_scores(matrices * kept[:, None])["macro_f1"]


def _names(kept: Mask, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, stays in zip(classes, kept, strict=True) if stays)
