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

from hemafast.evaluate.metrics import count_scores
from hemafast.experiments.resampled import Estimate, Labels, Matrices, Scores, estimate, resampled_confusions

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Group:
    """One domain, or several pooled."""

    name: str
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answers:
    """The validation images, and the predictions of each model for them."""

    labels: Labels
    domains: npt.NDArray[np.str_]
    predicted: dict[str, Labels]
    """By the name of the model's training group."""


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
    answers: Answers, tested: Sequence[Group], known: Mapping[str, Mask], classes: Sequence[str]
) -> Iterator[Cell]:
    """A cell for each model of `answers` and each group of `tested`.

    `known` marks for each model the classes (classes,) that it had training images of.
    """
    for test in tested:
        rows = np.isin(answers.domains, test.domains)
        predicted = {name: calls[rows] for name, calls in answers.predicted.items()}
        matrices = resampled_confusions(answers.labels[rows], predicted, len(classes))
        for name in predicted:
            yield _cell(name, test.name, matrices, known, classes)


def _cell(
    trained_on: str, tested_on: str, matrices: Mapping[str, Matrices], known: Mapping[str, Mask], classes: Sequence[str]
) -> Cell:
    mine = matrices[trained_on]
    present = mine[0].sum(axis=1) > 0
    shared = present & known[trained_on]
    drop = None
    if tested_on != trained_on and tested_on in matrices:
        drop = _drop(matrices[tested_on], mine, shared & known[tested_on], classes)
    return Cell(trained_on, tested_on, _score(mine, shared, classes), _score(mine, present, classes), drop)


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
