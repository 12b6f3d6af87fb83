"""What could be answered without looking at a cell: from the domain alone, and from the border of the image alone.

No network is trained. A model can only use a domain as a shortcut if the domain can be seen, and if it tells something
about the class (Geirhos et al. 2020, arXiv 2004.07780); both are measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from hemafast.data.dataset import Dataset, Samples
from hemafast.errors import name_some
from hemafast.evaluate.metrics import count_scores
from hemafast.experiments.border import Features, border_features, border_pixels
from hemafast.experiments.resampled import Estimate, Labels, estimate, resampled_confusions
from hemafast.prepare.split import TRAIN, VAL

MAJORITY, DOMAIN, BORDER_ALONE = "nothing", "its domain", "its border"
"""What a guess is made from: the likeliest in training, the likeliest of its domain there, and what was learned of
borders."""
POOLED = "pooled"

_ROUNDS = 5000  # of the solver; it ends long before


@dataclass(frozen=True, slots=True)
class Guess:
    """How good some way of guessing is on validation images."""

    accuracy: Estimate
    balanced_accuracy: Estimate
    """The mean recall of the classes: 1 / classes for whatever knows nothing of the image, however it answers."""
    macro_f1: Estimate
    above_chance: Estimate
    """The balanced accuracy less its chance, which in a resample is one over the classes that it happens to have."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """Ways of guessing on the same images, by name."""

    images: int
    classes: int
    """How many there are to guess from, among these images."""
    by: dict[str, Guess]

    @property
    def chance(self) -> float:
        """The balanced accuracy of whatever knows nothing of the image."""
        return 1 / self.classes

    def knows(self, name: str) -> bool:
        """Whether the balanced accuracy is above chance, the whole of its interval."""
        return self.by[name].above_chance.low > 0


@dataclass(frozen=True, slots=True)
class Shortcuts:
    """What the two checks found."""

    domains: tuple[str, ...]
    mutual_information: float
    """Of domain and class over the training images, as a share of the mean of their entropies: 0 to 1."""
    exclusive: dict[str, str]
    """Classes that only one domain has training images of, and that domain."""
    border_pixels: int
    square_pixels: int
    domain: Guesses
    """The domain, guessed."""
    label: dict[str, Guesses]
    """The class, guessed: of all images pooled, and of each domain."""

    @property
    def border_shows_domain(self) -> bool:
        """Whether the domain is found at the border."""
        return self.domain.knows(BORDER_ALONE)

    @property
    def domain_tells_class(self) -> bool:
        """Whether a class is in one domain only, or the domain alone finds classes."""
        return bool(self.exclusive) or self.label[POOLED].knows(DOMAIN)

    @property
    def border_tells_class(self) -> tuple[str, ...]:
        """Domains within which the class is found at the border."""
        return tuple(name for name in self.domains if self.label[name].knows(BORDER_ALONE))

    @property
    def verdict(self) -> str:
        """One sentence that follows from what was found."""
        seen = f"the border alone finds the domain ({_found(self.domain)})"
        tied = "the domain alone finds the class better than chance"
        if self.exclusive:
            verb = "occurs" if len(self.exclusive) == 1 else "occur"
            tied = f"{name_some(list(self.exclusive), 3)} {verb} in one domain only"
        match self.border_shows_domain, self.domain_tells_class:
            case True, True:
                said = f"A shortcut is open: {seen}, and {tied}"
            case True, False:
                said = f"The domain shows but says nothing of the class: {seen}, and each class is in several domains"
            case False, True:
                said = f"The domain says something of the class ({tied}), but the border alone does not show the domain"
            case _:
                said = "Neither check finds a shortcut by the domain, which does not prove that there is none"
        within = " and ".join(f"{name} ({_found(self.label[name])})" for name in self.border_tells_class)
        return said + (f"; within {within}, the border finds the class as well." if within else ".")

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        names = ("border_shows_domain", "domain_tells_class", "border_tells_class", "verdict")
        return asdict(self) | {name: getattr(self, name) for name in names}


def _found(guesses: Guesses) -> str:
    value = guesses.by[BORDER_ALONE].balanced_accuracy.value
    return f"balanced accuracy {value:.2f}, chance {guesses.chance:.2f}"


def check_shortcuts(
    dataset: Dataset, domains: Sequence[str], on_image: Callable[[int, int], object] = lambda done, images: None
) -> Shortcuts:
    """Measure both shortcuts between `domains`, each of which has images on both sides of the split.

    The border's features are learned on the training images by logistic regression; all scores are on validation.
    """
    from sklearn.metrics import normalized_mutual_info_score

    train, val = (_of_domains(dataset.samples(split), domains) for split in (TRAIN, VAL))
    features = border_features([train, val], on_image)
    places = {name: index for index, name in enumerate(domains)}
    domain_of = [np.array([places[str(name)] for name in part.domains], dtype=np.int64) for part in (train, val)]
    by_domain = {
        MAJORITY: _likeliest(domain_of[0], val),
        BORDER_ALONE: _learned(features[0], domain_of[0], features[1]),
    }
    by_class = {
        MAJORITY: _likeliest(train.labels, val),
        DOMAIN: _likeliest_by(train.labels, domain_of[0], domain_of[1]),
        BORDER_ALONE: _learned(features[0], train.labels, features[1]),
    }
    rows = {POOLED: np.full(len(val), True)} | {name: val.domains == name for name in domains}
    classes = dataset.info.classes
    return Shortcuts(
        domains=tuple(domains),
        mutual_information=float(normalized_mutual_info_score(train.domains, train.labels)),
        exclusive=_exclusive(train, classes),
        border_pixels=border_pixels(train.packed_size),
        square_pixels=train.packed_size,
        domain=_guesses(domain_of[1], by_domain, len(domains)),
        label={
            name: _guesses(val.labels[of], {way: calls[of] for way, calls in by_class.items()}, len(classes))
            for name, of in rows.items()
        },
    )


def _of_domains(samples: Samples, domains: Sequence[str]) -> Samples:
    return samples.select(np.flatnonzero(np.isin(samples.domains, list(domains))))


def _likeliest(trained: Labels, val: Samples) -> Labels:
    return np.full(len(val), np.bincount(trained).argmax())


def _likeliest_by(trained: Labels, groups: Labels, asked: Labels) -> Labels:
    """For each of `asked` the likeliest label of its group in training; each has one."""
    likeliest = {group: np.bincount(trained[groups == group]).argmax() for group in np.unique(groups)}
    return np.array([likeliest[group] for group in asked], dtype=np.int64)


def _learned(features: Features, labels: Labels, asked: Features) -> Labels:
    """What a logistic regression that learned `labels` from `features` makes of `asked`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    if len(np.unique(labels)) == 1:
        return np.full(len(asked), labels[0])
    model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=_ROUNDS))
    with threadpool_limits(1):  # so small a problem takes many times longer on several threads
        return np.asarray(model.fit(features, labels).predict(asked), dtype=np.int64)


def _guesses(labels: Labels, answers: Mapping[str, Labels], classes: int) -> Guesses:
    found = {}
    for name, matrices in resampled_confusions(labels, answers, classes).items():
        scores = count_scores(matrices)
        chance = 1 / (matrices.sum(axis=2) > 0).sum(axis=1)
        found[name] = Guess(
            accuracy=estimate(scores["accuracy"]),
            balanced_accuracy=estimate(scores["balanced_accuracy"]),
            macro_f1=estimate(scores["macro_f1"]),
            above_chance=estimate(scores["balanced_accuracy"] - chance),
        )
    return Guesses(len(labels), len(np.unique(labels)), found)


def _exclusive(train: Samples, classes: Sequence[str]) -> dict[str, str]:
    homes: dict[int, list[str]] = {}
    for label, name in sorted(set(zip(train.labels.tolist(), train.domains.tolist(), strict=True))):
        homes.setdefault(label, []).append(name)
    return {classes[label]: names[0] for label, names in homes.items() if len(names) == 1}
