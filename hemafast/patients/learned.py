"""Train and score a head for labels of patients: cross-validation with patients apart, beside simpler ways."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.errors import HemafastError
from hemafast.evaluate.intervals import Weights, plain, with_intervals
from hemafast.evaluate.metrics import Labels, Probabilities, Scores, auroc, bootstrapped, confusions, count_scores
from hemafast.folds import folds_apart
from hemafast.patients.attention import Features, GatedAttention, Head, Seen, apply, fit, look_at
from hemafast.progress import SILENT, Progress, stage
from hemafast.words import counted

FEWEST = 5
"""Patients that each label needs."""
_FEW = 30  # patients in all, below which intervals are said to be wide
_FOLDS = 5
PERMUTATIONS = 99
"""Of the labels of patients, at most: the smallest p is 0.01."""
_ENOUGH = 10  # permutations that score as high, after which no more are drawn
LEVEL = 0.05
"""p up to which the labels are said to be told."""
_TIED = 1e-9  # areas that differ by less are equal
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
        progress: listens to the number of permutations.

    Returns:
        Held-out answers for patients with a label, those of the head trained on them all for the others, and scores.

    Raises:
        HemafastError: there are too few patients.
    """
    names = sorted({known[patient] for patient in bags.patients if patient in known})
    labels = np.array([names.index(known[one]) if one in known else -1 for one in bags.patients], dtype=np.int64)
    _refuse_few(Counter(known[one] for one in bags.patients if one in known))
    labelled, others = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    with stage(progress, "learning labels of patients"):
        folds = list(_folds(bags, labels, labelled, seed))
        probabilities, attention = _held_out(bags, labels, folds, len(names), seed)
        whole = fit(_seen(bags, labelled, seed), labels[labelled], len(names), seed)
        if len(others):
            _answer(whole, bags, others, probabilities, attention)
    simple = {
        name: _regressed(seen, labels, folds, len(names))[labelled]
        for name, seen in (("differential", bags.shares), ("means", _means(bags)))
    }
    scores = _scored(labels[labelled], probabilities[labelled], simple, names, len(folds))
    scores["permutation"] = found = _permuted(bags, labels, folds, scores["auroc"], len(names), seed, progress)
    scores["verdict"] = _verdict(len(labelled), scores, found)
    return Learned(tuple(names), probabilities, attention, scores, Head(whole, tuple(names), network, len(labelled)))


def _refuse_few(of_label: Counter[str]) -> None:
    said = ", ".join(f"{counted(count, 'patient')} with {name}" for name, count in sorted(of_label.items()))
    if len(of_label) < 2 or min(of_label.values()) < FEWEST:
        raise HemafastError(
            f"Too few patients to learn from: {said}.",
            f"At least two labels need {FEWEST} patients each. Leave out --patient-labels for differentials alone.",
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Fold:
    fitted: Labels
    """Patients that a head learns from."""
    left: Labels
    """Patients that it then answers for."""
    seen: Seen
    """The cells of the former."""


def _folds(bags: Bags, labels: Labels, labelled: Labels, seed: int) -> Iterator[_Fold]:
    patients = [bags.patients[one] for one in labelled]
    for fitted, left in folds_apart(labels[labelled], patients, _FOLDS, seed):
        yield _Fold(labelled[fitted], labelled[left], _seen(bags, labelled[fitted], seed))


def _seen(bags: Bags, chosen: Labels, seed: int) -> Seen:
    _, features, place = bags.of(chosen)
    return look_at(features, place, len(chosen), seed)


def _held_out(bags: Bags, labels: Labels, folds: Sequence[_Fold], classes: int, seed: int) -> tuple[Features, Features]:
    """Probabilities (patients, classes) and attention (n,) of heads that have not seen the patient."""
    probabilities = np.full((len(labels), classes), np.nan, np.float32)
    attention = np.zeros(len(bags.place), np.float32)
    for fold in folds:
        head = fit(fold.seen, labels[fold.fitted], classes, seed)
        _answer(head, bags, fold.left, probabilities, attention)
    return probabilities, attention


def _permuted(
    bags: Bags, labels: Labels, folds: Sequence[_Fold], found: float, classes: int, seed: int, progress: Progress
) -> dict[str, Any]:
    """How often labels that mean nothing reach the AUROC that was found: `p`, `permutations` and `as_high`.

    Labels change places within each fold, so that all folds keep theirs, and heads are trained and scored as before.
    Patients without a rule can change places, so p is exact. After _ENOUGH that score as high, p is their share of
    those drawn (Besag and Clifford 1991): where there is nothing to find, that takes some twenty.
    """
    generator, drawn, high = np.random.default_rng(seed), 0, 0
    labelled = np.concatenate([fold.left for fold in folds])
    with stage(progress, "permuting labels of patients", PERMUTATIONS, unit="permutations"):
        while drawn < PERMUTATIONS and high < _ENOUGH:
            mixed = labels.copy()
            for fold in folds:
                mixed[fold.left] = generator.permutation(labels[fold.left])
            probabilities, _ = _held_out(bags, mixed, folds, classes, seed)
            high += bool(_area(mixed[labelled], probabilities[labelled]) >= found - _TIED)
            drawn += 1
            progress.advance(1)
    p = high / drawn if high == _ENOUGH else (high + 1) / (drawn + 1)
    return {"p": p, "permutations": drawn, "as_high": high}


def _area(labels: Labels, probabilities: Probabilities) -> float:
    return float(auroc(labels, probabilities, np.ones((len(labels), 1), np.float32)).mean())


def _answer(head: GatedAttention, bags: Bags, chosen: Labels, probabilities: Features, attention: Features) -> None:
    """Fill in what a head says of the chosen patients."""
    rows, features, place = bags.of(chosen)
    probabilities[chosen], attention[rows] = apply(head, features, place, len(chosen))


def _regressed(seen: npt.NDArray[Any], labels: Labels, folds: Sequence[_Fold], classes: int) -> Probabilities:
    """Held-out probabilities of a logistic regression on what is seen of each patient, (patients, d)."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found = np.full((len(labels), classes), np.nan)
    for fold in folds:
        regression = LogisticRegression(C=_SMOOTHNESS, class_weight="balanced", max_iter=1000)
        model = make_pipeline(StandardScaler(), regression)
        found[fold.left] = model.fit(seen[fold.fitted], labels[fold.fitted]).predict_proba(seen[fold.left])
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
    """Scores over the patients with 95 % intervals, and those of simpler ways."""
    of_label = np.bincount(labels, minlength=len(names))
    return {
        "patients": dict(zip(names, of_label.tolist(), strict=True)),
        "folds": folds,
        **_with_ends(labels, probabilities),
        **{name: _with_ends(labels, answers) for name, answers in simple.items()},
        "majority": plain(of_label.max() / len(labels)),
    }


def _with_ends(labels: Labels, probabilities: Probabilities) -> dict[str, Any]:
    def calculate(labels: Labels, probabilities: Probabilities, weights: Weights) -> dict[str, Scores]:
        found = count_scores(confusions(labels, probabilities.argmax(axis=1), weights, probabilities.shape[1]))
        areas = auroc(labels, probabilities, weights)
        return {name: found[name] for name in ("accuracy", "balanced_accuracy")} | {"auroc": areas.mean(axis=1)}

    return with_intervals(bootstrapped(calculate, labels, probabilities))


def _verdict(patients: int, scores: Mapping[str, Any], permuted: Mapping[str, Any]) -> str:
    """What the scores come to in words."""
    area = "AUROC {:.2f}, {:.2f} to {:.2f}".format(scores["auroc"], *scores["ci95"]["auroc"])
    of = f"{permuted['as_high']} of {counted(permuted['permutations'], 'permutation')} of the labels as high"
    said = f"{area}; {of}, p = {permuted['p']:.2f}"
    few = f" {counted(patients, 'patient')} are few: intervals are wide." if patients < _FEW else ""
    if permuted["p"] <= LEVEL:
        return f"The cells tell the labels of these patients better than chance ({said}).{few}"
    return f"Nothing shows that the cells tell the labels ({said}; chance is 0.50).{few}"
