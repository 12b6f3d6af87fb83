"""Scores of models trained on one domain and tested on another, over the classes that both have.

A class is *shared* if the model had training images of it and the test domain has validation images of it. The shared
score leaves images of other classes out of the test set. The model still answers among all classes, so an answer
outside the shared classes is an error. The score is scikit-learn's `f1_score(labels=shared, average="macro")` over the
remaining images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hemafast.data.samples import Samples
from hemafast.evaluate.metrics import Confusions, count_scores
from hemafast.experiments.resampled import Estimate, Labels, Scores, estimate, resampled_confusions

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


@dataclass(frozen=True, slots=True)
class Mean:
    """The mean of shared scores over several domains, each with the same weight."""

    macro_f1: Estimate
    domains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Every model on every group of images."""

    cells: tuple[Cell, ...]
    resampled: Mapping[tuple[str, str], Scores]
    """Shared scores (1 + resamples,), by training and test group."""

    def mean(self, pairs: Mapping[str, str]) -> Mean | None:
        """The mean over domains, by the name of the model that is tested on each; None without a score.

        Domains without a shared class are left out.
        """
        known = [name for name, model in pairs.items() if np.isfinite(self._scores(model, name)[0])]
        if not known:
            return None
        parts = []
        for place, name in enumerate(known):
            scores = self._scores(pairs[name], name)
            # Domains are drawn independently, while those of equal size have the same draws in the same order.
            order = np.random.default_rng(place).permutation(len(scores) - 1)
            parts.append(np.concatenate([scores[:1], scores[1:][order]]))
        return Mean(estimate(np.mean(parts, axis=0)), tuple(known))

    def _scores(self, model: str, domain: str) -> Scores:
        return self.resampled.get((model, domain), np.full(1, np.nan))


def score_matrix(
    images: Samples,
    labels: Labels,
    answers: Mapping[str, Labels],
    tested: Sequence[Group],
    known: Mapping[str, Mask],
    classes: Sequence[str],
) -> Matrix:
    """A cell for each model of `answers` and each group of `tested`.

    Args:
        images: the validation images of all domains.
        labels: (images,), places of their classes in `classes`; -1 for an image that is left out.
        answers: (images,) by training group: places of the answers of each model.
        tested: the groups of domains to test on.
        known: (classes,) by training group: the classes that the model had training images of.
        classes: names of the classes.

    Returns:
        The matrix.
    """
    cells, resampled = [], {}
    for test in tested:
        rows = np.isin(images.domains, test.domains) & (labels >= 0)
        asked = {name: calls[rows] for name, calls in answers.items()}
        confusion = resampled_confusions(labels[rows], asked, len(classes))
        present = np.bincount(labels[rows], minlength=len(classes)) > 0
        for name, mine in confusion.items():
            shared, drop = present & known[name], None
            if test.name != name and test.name in confusion:
                drop = _drop(confusion[test.name], mine, shared & known[test.name], classes)
            resampled[name, test.name] = _macro_f1(mine, shared)
            cells.append(Cell(name, test.name, _score(mine, shared, classes), _score(mine, present, classes), drop))
    return Matrix(tuple(cells), resampled)


def _score(confusion: Confusions, kept: Mask, classes: Sequence[str]) -> Score:
    return Score(
        estimate(_macro_f1(confusion, kept)), int(confusion.among(kept).counts[0].sum()), _names(kept, classes)
    )


def _drop(own: Confusions, other: Confusions, kept: Mask, classes: Sequence[str]) -> Drop:
    before, after = _macro_f1(own, kept), _macro_f1(other, kept)
    return Drop(
        in_domain=estimate(before).value,
        here=estimate(after).value,
        drop=estimate(before - after),
        classes=_names(kept, classes),
    )


def _macro_f1(confusion: Confusions, kept: Mask) -> Scores:
    """Macro-F1 over the images of the kept classes."""
    return count_scores(confusion.among(kept))["macro_f1"]


def _names(kept: Mask, classes: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, stays in zip(classes, kept, strict=True) if stays)
