"""Shortcuts: what can be predicted without seeing the cell, from the domain or the border of the image alone.

No network is trained. A model can use the domain as a shortcut only if the image shows the domain and the domain says
something about the class (Geirhos et al. 2020, arXiv 2004.07780). Both are measured here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hemafast.data.dataset import Dataset
from hemafast.errors import name_some
from hemafast.evaluate.metrics import count_scores
from hemafast.experiments.border import Features, border_features, border_pixels
from hemafast.experiments.resampled import Estimate, Labels, estimate, resampled_confusions
from hemafast.preparation.split import TRAIN, VAL
from hemafast.progress import SILENT, Progress

MAJORITY, DOMAIN, BORDER_ALONE = "nothing", "its domain", "its border"
"""The basis of a guess: nothing (the most frequent in training), the domain (the most frequent in it), the border (a
logistic regression)."""
POOLED = "pooled"

_ROUNDS = 5000  # of the solver; it converges long before


@dataclass(frozen=True, slots=True)
class Guess:
    """How well one way of guessing does on validation images."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    """Mean recall of the classes: 1 / classes for any guess that ignores the image."""
    macro_f1: Estimate
    above_chance: Estimate
    """Balanced accuracy minus chance, which in each resample is 1 / the classes present in it."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """Several ways of guessing on the same images."""

    images: int
    classes: int
    """Number of classes among these images."""
    by: dict[str, Guess]

    @property
    def chance(self) -> float:
        """The balanced accuracy of a guess that ignores the image."""
        return 1 / self.classes

    def knows(self, name: str) -> bool:
        """Whether the whole interval of the balanced accuracy is above chance."""
        low, _ = self.by[name].above_chance.ci95
        return low is not None and low > 0


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """The results of the shortcut check."""

    domains: tuple[str, ...]
    mutual_information: float
    """Normalised mutual information of domain and class over the training images, 0 to 1."""
    exclusive: dict[str, str]
    """Classes with training images in only one domain, and that domain."""
    border_pixels: int
    square_pixels: int
    domain: Guesses
    """Guesses of the domain."""
    label: dict[str, Guesses]
    """Guesses of the class, pooled and within each domain."""

    @property
    def border_shows_domain(self) -> bool:
        """Whether the border predicts the domain."""
        return self.domain.knows(BORDER_ALONE)

    @property
    def domain_tells_class(self) -> bool:
        """Whether a class is in one domain only, or the domain alone predicts the class."""
        return bool(self.exclusive) or self.label[POOLED].knows(DOMAIN)

    @property
    def border_tells_class(self) -> tuple[str, ...]:
        """Domains within which the border predicts the class."""
        return tuple(name for name in self.domains if self.label[name].knows(BORDER_ALONE))

    @property
    def verdict(self) -> str:
        """The result in one sentence."""
        seen = f"the border alone predicts the domain ({_found(self.domain)})"
        tied = "the domain alone predicts the class better than chance"
        if self.exclusive:
            verb = "occurs" if len(self.exclusive) == 1 else "occur"
            tied = f"{name_some(list(self.exclusive), 3)} {verb} in one domain only"
        match self.border_shows_domain, self.domain_tells_class:
            case True, True:
                said = f"A shortcut is open: {seen}, and {tied}"
            case True, False:
                said = f"The domain shows, but says nothing about the class: {seen}; each class is in several domains"
            case False, True:
                said = f"The domain says something about the class ({tied}), but the border does not show the domain"
            case _:
                said = "Neither check finds a shortcut; this does not prove that no shortcut exists"
        within = " and ".join(f"{name} ({_found(self.label[name])})" for name in self.border_tells_class)
        return said + (f"; within {within}, the border also predicts the class." if within else ".")

    def to_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        names = ("border_shows_domain", "domain_tells_class", "border_tells_class", "verdict")
        return asdict(self) | {name: getattr(self, name) for name in names}


def _found(guesses: Guesses) -> str:
    value = guesses.by[BORDER_ALONE].balanced_accuracy.value
    return f"balanced accuracy {value:.2f}, chance {guesses.chance:.2f}"


def check_shortcuts(dataset: Dataset, domains: Sequence[str], *, progress: Progress = SILENT) -> Shortcuts:
    """Measure what domain and border predict, between `domains` that all have training and validation images.

    Guesses are learned on training images and scored on validation images.
    """
    from sklearn.metrics import normalized_mutual_info_score

    train, val = (replace(dataset, chosen=tuple(domains)).samples(split) for split in (TRAIN, VAL))
    features = border_features([train, val], progress=progress)
    places = {name: index for index, name in enumerate(domains)}
    domain_of = [np.array([places[str(name)] for name in part.domains], dtype=np.int64) for part in (train, val)]
    by_domain = {
        MAJORITY: np.full(len(val), np.bincount(domain_of[0]).argmax()),
        BORDER_ALONE: _learned(features[0], domain_of[0], features[1]),
    }
    by_class = {
        MAJORITY: np.full(len(val), np.bincount(train.labels).argmax()),
        DOMAIN: _likeliest(train.labels, domain_of[0], domain_of[1]),
        BORDER_ALONE: _learned(features[0], train.labels, features[1]),
    }
    rows = {POOLED: np.full(len(val), True)} | {name: val.domains == name for name in domains}
    classes = dataset.info.classes
    homes = {name: set(train.domains[train.labels == label]) for label, name in enumerate(classes)}
    return Shortcuts(
        domains=tuple(domains),
        mutual_information=float(normalized_mutual_info_score(train.domains, train.labels)),
        exclusive={name: str(next(iter(there))) for name, there in homes.items() if len(there) == 1},
        border_pixels=border_pixels(train.packed_size),
        square_pixels=train.packed_size,
        domain=_guesses(domain_of[1], by_domain, len(domains)),
        label={
            name: _guesses(val.labels[of], {way: calls[of] for way, calls in by_class.items()}, len(classes))
            for name, of in rows.items()
        },
    )


def _likeliest(trained: Labels, groups: Labels, asked: Labels) -> Labels:
    """For each of `asked`, the most frequent training label of its group."""
    likeliest = {group: np.bincount(trained[groups == group]).argmax() for group in np.unique(groups)}
    return np.array([likeliest[group] for group in asked], dtype=np.int64)


def _learned(features: Features, labels: Labels, asked: Features) -> Labels:
    """Predictions for `asked` by a logistic regression trained on `features` and `labels`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(np.unique(labels)) == 1:
        return np.full(len(asked), labels[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=_ROUNDS))
    with threadpool_limits(1):  # several threads are much slower on a problem this small
        return np.asarray(model.fit(features, labels).predict(asked), dtype=np.int64)


def _guesses(labels: Labels, answers: Mapping[str, Labels], classes: int) -> Guesses:
    found = {}
    for name, confusion in resampled_confusions(labels, answers, classes).items():
        scores = count_scores(confusion)
        chance = 1 / (confusion.of_actual > 0).sum(axis=1)
        found[name] = Guess(
            accuracy=estimate(scores["accuracy"]),
            balanced_accuracy=estimate(scores["balanced_accuracy"]),
            macro_f1=estimate(scores["macro_f1"]),
            above_chance=estimate(scores["balanced_accuracy"] - chance),
        )
    return Guesses(len(labels), len(np.unique(labels)), found)
