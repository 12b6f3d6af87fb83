"""Compare a model and a data set whose classes differ, by merging the classes that one of them does not tell apart.

A class map renames classes of both; classes of one name are then one class. The probabilities of merged classes are
added up. A class that only the model has stays: answering with it is a mistake. Images of a class that only the data
has are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hemafast.errors import HemafastError, name_some
from hemafast.evaluate.metrics import Labels, Probabilities
from hemafast.preparation.sources.class_names import covered_by
from hemafast.preparation.sources.names import fold
from hemafast.words import counted

_NAMED = 12  # classes that an error lists

Images = Mapping[str, int]
"""Number of images by class of the data, zeros included, in label order."""


class OtherClassesError(HemafastError):
    """Classes of the data have other names in the model. `suggested` is a class map that compares them."""

    def __init__(self, problem: str, suggested: Mapping[str, str]) -> None:
        super().__init__(problem, "Say which classes they are with --class-map.")
        self.suggested = suggested


@dataclass(frozen=True, slots=True)
class Folding:
    """Which class of a model is which class of a data set."""

    model: tuple[str, ...]
    """Classes of the model, in order."""
    classes: tuple[str, ...]
    """The possible answers after merging, in the order of the model's classes."""
    answers: Labels
    """(classes of the model,): the place of each in `classes`."""
    labels: Labels
    """(classes of the data,): the place of each in `classes`; -1 for one whose images are left out."""
    account: Mapping[str, Any]
    """What was done, as plain data: `class_map` as given; `compared`, the classes that both have, the data with images;
    `merged`, by class, what it was made of; `left_out`, images by class; `model_only`."""

    def probabilities(self, given: Probabilities) -> Probabilities:
        """(images, classes of the model) to (images, `classes`)."""
        belongs = np.zeros((len(self.answers), len(self.classes)), dtype=given.dtype)
        belongs[np.arange(len(self.answers)), self.answers] = 1
        return np.asarray(given @ belongs)


def fold_classes(model: Sequence[str], images: Images, class_map: Mapping[str, str]) -> Folding:
    """Compare the classes of a model with those of a data set.

    Args:
        model: classes of the model, in the order of its outputs.
        images: images to score by class of the data, in label order.
        class_map: new names for classes of the model, of the data or of both; "" leaves the images of a class out.

    Returns:
        The folding. Without a class map, classes of equal names are compared; case and spaces do not matter.

    Raises:
        OtherClassesError: images are of classes that have another name in the model, such as Neutrophil.
        HemafastError: the class map names an unknown class, or no image is left.
    """
    new = {fold(old): name for old, name in class_map.items()}
    answers = {name: new.get(fold(name)) or name for name in model}  # "" leaves images out; the model still answers
    labels = {name: new.get(fold(name), name) for name in images}
    _refuse_unknown(class_map, answers, labels)
    spelled: dict[str, str] = {}
    for name in answers.values():
        spelled.setdefault(fold(name), name)
    place = {folded: index for index, folded in enumerate(spelled)}
    account = _account(class_map, answers, labels, images, spelled)
    _suggest(model, account["left_out"], class_map)
    if not account["compared"]:
        raise HemafastError(
            f"No class is in both: the model knows {name_some(model, _NAMED)}; the images are of "
            f"{name_some([name for name, count in images.items() if count], _NAMED)}.",
            "Say which classes are the same with --class-map, or score another data set.",
        )
    return Folding(
        model=tuple(model),
        classes=tuple(spelled.values()),
        answers=np.array([place[fold(name)] for name in answers.values()], dtype=np.int64),
        labels=np.array([place.get(fold(name), -1) for name in labels.values()], dtype=np.int64),
        account=account,
    )


def notes(account: Mapping[str, Any]) -> list[str]:
    """What was merged, and which classes one side lacks, in sentences; none if both have the same classes."""
    merged = [
        f"{' and '.join(names)} {'count' if len(names) > 1 else 'counts'} as {name}"
        for name, names in account["merged"].items()
    ]
    outside = account["model_only"]
    wrong = [f"Of these classes there are no images: {name_some(outside, _NAMED)}; such an answer is a mistake"]
    left = [
        f"{counted(count, f'image of {name} is', f'images of {name} are')} left out"
        for name, count in account["left_out"].items()
    ]
    return [*merged, *(wrong if outside else []), *_without_others(account.get("own_classes")), *left]


def _without_others(own: Mapping[str, Any] | None) -> list[str]:
    """What an adapted model that knows no other classes than the data would score."""
    if own is None:
        return []
    low, high = own["ci95"]["macro_f1"]
    return [
        f"If only classes of these images could be answers, macro-F1 would be {own['macro_f1']:.3f} "
        f"(95 % interval {low:.3f} to {high:.3f}): `hemafast adapt RUN IMAGES --classes {','.join(own['classes'])}`"
    ]


def _account(
    class_map: Mapping[str, str],
    answers: Mapping[str, str],
    labels: Mapping[str, str],
    images: Images,
    spelled: Mapping[str, str],
) -> dict[str, Any]:
    there = {fold(label) for name, label in labels.items() if images[name]}
    known = {fold(label) for label in labels.values()}
    return {
        "class_map": dict(class_map),
        "compared": [name for folded, name in spelled.items() if folded in there],
        "merged": _merged([*answers.items(), *labels.items()], spelled),
        "left_out": {
            name: images[name] for name, label in labels.items() if images[name] and fold(label) not in spelled
        },
        "model_only": [name for folded, name in spelled.items() if folded not in known],
    }


def _merged(renamed: Sequence[tuple[str, str]], spelled: Mapping[str, str]) -> dict[str, list[str]]:
    """By class: the other names that became it."""
    names: dict[str, dict[str, str]] = {folded: {} for folded in spelled}
    for old, new in renamed:
        if fold(new) in names and fold(old) != fold(new):
            names[fold(new)].setdefault(fold(old), old)
    return {spelled[folded]: [*parts.values()] for folded, parts in names.items() if parts}


def _refuse_unknown(class_map: Mapping[str, str], answers: Mapping[str, str], labels: Mapping[str, str]) -> None:
    """A new name must be a class of one side, or what classes of both sides become."""
    known = {fold(name) for name in (*answers, *labels)}
    shared = {fold(name) for name in answers.values()} & {fold(name) for name in labels.values()}
    unknown = [old for old in class_map if fold(old) not in known]
    unknown += [new for new in class_map.values() if new and fold(new) not in known | shared]
    if unknown:
        raise HemafastError(
            f"The class map names {unknown[0]}, which is no class of the model nor of the data.",
            f"The model has {name_some([*answers], _NAMED)}; the data has {name_some([*labels], _NAMED)}.",
        )


def _suggest(model: Sequence[str], left_out: Images, class_map: Mapping[str, str]) -> None:
    """Raise OtherClassesError if images are of a class that the model probably has under another name."""
    suggested: dict[str, str] = {}
    described = []
    decided = {fold(name) for name, new in class_map.items() if not new}
    for name, count in left_out.items():
        same = [one for one in model if covered_by(one) & covered_by(name)]
        if same and fold(name) not in decided:
            described.append(f"{name} ({counted(count, 'image')}, probably {' and '.join(same)})")
            suggested |= _pairs(name, same, suggested)
    if described:
        problem = f"The model has other names for {name_some(described, _NAMED)}."
        raise OtherClassesError(problem, {**class_map, **suggested})


def _pairs(name: str, same: Sequence[str], before: Mapping[str, str]) -> dict[str, str]:
    """A class of the data renamed to that of the model, or several of the model to that of the data."""
    if len(same) == 1:
        return {name: same[0]}
    taken = next((before[one] for one in same if one in before), None)
    return dict.fromkeys(same, name) if taken is None else {name: taken}
