"""Train and score a head for labels of patients: cross-validation with patients apart, beside simpler ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError
from hemafast.evaluate.intervals import Weights, plain, with_intervals
from hemafast.evaluate.metrics import Labels, Probabilities, Scores, auroc, bootstrapped, confusions, count_scores
from hemafast.folds import folds_apart
from hemafast.patients.attention import Features, GatedAttention, Head, apply, fit
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted

FEWEST = 5
"""Patients that each label needs."""
_FEW = 30  # patients in all, below which intervals are said to be wide
_FOLDS = 5
_CHANCE = 0.5
_SMOOTHNESS = 0.03  # C of the logistic regressions, on standardised features


@dataclass(frozen=True, slots=True, eq=False)
class Bags:
    """Cells of patients as arrays."""

    patients: tuple[str, ...]
    features: Features
    """(n, d), finite."""
    place: Labels
    """(n,), the patient of each cell; each has a cell."""
    shares: npt.NDArray[np.float64]
    """(patients, classes), of the calls of a patient."""

    def of(self, chosen: Labels) -> tuple[npt.NDArray[np.bool_], Features, Labels]:
        """Which cells are of the chosen patients (in rising order), their features, and their place among these."""
        rows = np.isin(self.place, chosen)
        return rows, self.features[rows], np.searchsorted(chosen, self.place[rows]).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """Answers for patients."""

    labels: tuple[str, ...]
    probabilities: Probabilities
    """(patients, labels), of heads that have not seen the patient."""
    attention: Features
    """(n,), of the same heads; adds up to 1 over the cells of a patient."""
    scores: dict[str, Any] | None
    """None if a stored head was applied."""
    head: Head | None
    """Trained on all labelled patients; None if a stored one was applied."""


def applied(head: Head, bags: Bags) -> Learned:
    """Answers of a stored head."""
    probabilities, attention = apply(head.module, bags.features, bags.place, len(bags.patients))
    return Learned(head.labels, probabilities, attention, None, None)


def learn(bags: Bags, known: Mapping[str, str], network: str, seed: int = 0, progress: Progress = SILENT) -> Learned:
    """Train a head on the patients that have a label, and score it by cross-validation.

    Args:
        bags: all patients.
        known: labels by patient.
        network: sha256 of the model's file whose features these are.
        seed: of folds and heads.
        progress: listens to the number of heads trained.

    Returns:
        Held-out answers for patients with a label, those of the head trained on them all for the others, and scores.

    Raises:
        HemafastError: there are too few patients.
    """
    names = sorted({known[patient] for patient in bags.patients if patient in known})
    labels = np.array([names.index(known[one]) if one in known else -1 for one in bags.patients], dtype=np.int64)
    _refuse_few(Counter(known[one] for one in bags.patients if one in known))
    labelled, others = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    folds = [
        (labelled[fitted], labelled[left])
        for fitted, left in folds_apart(labels[labelled], [bags.patients[one] for one in labelled], _FOLDS, seed)
    ]
    probabilities = np.full((len(labels), len(names)), np.nan, np.float32)
    attention = np.zeros(len(bags.place), np.float32)
    with stage(progress, "learning labels of patients", len(folds) + 1, unit="heads"):
        for fitted, left in folds:
            head = _fitted(bags, labels, fitted, len(names), seed)
            _answer(head, bags, left, probabilities, attention)
            progress.advance(1)
        whole = _fitted(bags, labels, labelled, len(names), seed)
        progress.advance(1)
    if len(others):
        _answer(whole, bags, others, probabilities, attention)
    simple = {
        name: _regressed(seen, labels, folds, len(names))[labelled]
        for name, seen in (("differential", bags.shares), ("means", _means(bags)))
    }
    scores = _scored(labels[labelled], probabilities[labelled], simple, names, len(folds))
    return Learned(tuple(names), probabilities, attention, scores, Head(whole, tuple(names), network, len(labelled)))


def _refuse_few(of_label: Counter[str]) -> None:
    said = ", ".join(f"{counted(count, 'patient')} with {name}" for name, count in sorted(of_label.items()))
    if len(of_label) < 2 or min(of_label.values()) < FEWEST:
        raise HemafastError(
            f"Too few patients to learn from: {said}.",
            f"At least two labels need {FEWEST} patients each. Leave out --patient-labels for differentials alone.",
        )


def _fitted(bags: Bags, labels: Labels, chosen: Labels, classes: int, seed: int) -> GatedAttention:
    _, features, place = bags.of(chosen)
    return fit(features, place, labels[chosen], classes, seed)


def _answer(head: GatedAttention, bags: Bags, chosen: Labels, probabilities: Features, attention: Features) -> None:
    """Fill in what a head says of the chosen patients."""
    rows, features, place = bags.of(chosen)
    probabilities[chosen], attention[rows] = apply(head, features, place, len(chosen))


def _regressed(
    seen: npt.NDArray[Any], labels: Labels, folds: Sequence[tuple[Labels, Labels]], classes: int
) -> Probabilities:
    """Held-out probabilities of a logistic regression on what is seen of each patient, (patients, d)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.full((len(labels), classes), np.nan)
    for fitted, left in folds:
        regression = LogisticRegression(C=_SMOOTHNESS, class_weight="balanced", max_iter=1000)
        model = make_pipeline(StandardScaler(), regression)
        found[left] = model.fit(seen[fitted], labels[fitted]).predict_proba(seen[left])
    return found


def _means(bags: Bags) -> Features:
    """(patients, d): the mean features of the cells of each patient."""
    sums = np.zeros((len(bags.patients), bags.features.shape[1]))
    np.add.at(sums, bags.place, bags.features)
    return np.asarray(sums / np.bincount(bags.place)[:, None], np.float32)


def _scored(
    labels: Labels,
    probabilities: Probabilities,
    simple: Mapping[str, Probabilities],
    names: Sequence[str],
    folds: int,
) -> dict[str, Any]:
    """Scores over the patients with 95 % intervals, those of simpler ways, and what they come to in words."""
    of_label = np.bincount(labels, minlength=len(names))
    by_attention = _with_ends(labels, probabilities)
    return {
        "patients": dict(zip(names, of_label.tolist(), strict=True)),
        "folds": folds,
        **by_attention,
        **{name: _with_ends(labels, answers) for name, answers in simple.items()},
        "majority": plain(of_label.max() / len(labels)),
        "verdict": _verdict(len(labels), by_attention),
    }


def _with_ends(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    def calculate(labels: Labels, probabilities: Probabilities, weights: Weights) -> dict[str, Scores]:
        found = count_scores(confusions(labels, probabilities.argmax(axis=1), weights, probabilities.shape[1]))
        areas = auroc(labels, probabilities, weights)
        return {name: found[name] for name in ("accuracy", "balanced_accuracy")} | {"auroc": areas.mean(axis=1)}

    return with_intervals(bootstrapped(calculate, labels, probabilities))


def _verdict(patients: int, found: Mapping[str, Any]) -> str:
    low, high = found["ci95"]["auroc"]
    ends = f"AUROC {found['auroc']:.2f}, {low:.2f} to {high:.2f}"
    few = f" {counted(patients, 'patient')} are few: intervals are wide." if patients < _FEW else ""
    if low > _CHANCE:
        return f"The cells tell the labels of these patients better than chance ({ends}).{few}"
    return f"Nothing shows that the cells tell the labels ({ends}; chance is 0.50).{few}"
