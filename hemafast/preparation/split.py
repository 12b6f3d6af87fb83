"""Split images into training and validation, or into folds: stratified by class and domain, groups whole, seeded.

Test images are held out first: by folders, labels or --split-file, or drawn with --test-fraction.

The assignment is greedy iterative stratification (after Sechidis, Tsoumakas and Vlahavas 2011, "On the stratification
of multi-label data"). A group takes the place of a sample with several labels, since its images may belong to several
strata. Groups are assigned from the largest to the smallest, ties ordered by hash, each to the part that lacks its
strata most.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence

import numpy as np
import pandas as pd

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL)
"""The splits that training uses."""
ALL_SPLITS = (*SPLITS, TEST)
ALL = "all"
"""Instead of a split: every image that is not quarantined, for a data set that is only tested on."""
WORDS = {TRAIN: "training", VAL: "validation", TEST: "test", ALL: "labelled"}
"""What each split's images are called, as in "validation images"."""
NO_FOLD = -1
"""Fold of images that are in no fold: all without folds, and test images."""

Stratum = tuple[str, str]
"""Domain and label."""
Holdings = Counter[Stratum]
"""Numbers of images that a group, or a part of the split, holds of each stratum."""


def draw(seed: int | str, name: str) -> str:
    """A random rank of `name`, which depends only on the seed and the name."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()


def assign_split(images: pd.DataFrame, *, val_fraction: float, seed: int) -> pd.Series[str]:
    """The split of every image.

    `images` has the columns domain, label and group. Each stratum (a class in a domain) sends `val_fraction` of its
    images to validation, above 0 and below 1. If it has two groups or more, each side gets an image if possible.
    """
    parts = _assign(images, (1 - val_fraction, val_fraction), seed)
    return parts.map({0: TRAIN, 1: VAL}).rename("split")


def assign_test(images: pd.DataFrame, *, test_fraction: float, seed: int) -> pd.Series[bool]:
    """Whether each image is held out; `images` and shares as for `assign_split`."""
    return (_assign(images, (1 - test_fraction, test_fraction), f"{TEST}:{seed}") == 1).rename(TEST)


def assign_folds(images: pd.DataFrame, *, folds: int, seed: int) -> pd.Series[int]:
    """The fold of every image, from 0; `images` as for `assign_split`. Folds have nearly equal sizes."""
    return _assign(images, (1 / folds,) * folds, seed).rename("fold")


def missing_strata(images: pd.DataFrame, part: str, parts: Sequence[Hashable]) -> list[str]:
    """Notes about strata without images in some part. `part` is a column, `parts` are its values."""
    sentences = []
    for (domain, label), stratum in images.groupby(["domain", "label"]):
        if absent := [str(name) for name in parts if name not in set(stratum[part])]:
            groups = stratum["group"].nunique()
            sentences.append(
                f"{domain}, {label}: {len(stratum)} image{'s' * (len(stratum) != 1)} in {groups} "
                f"group{'s' * (groups != 1)}, none in "
                f"{part} {', '.join(absent)}"
            )
    return sentences


def _assign(images: pd.DataFrame, shares: Sequence[float], seed: int | str) -> pd.Series[int]:
    """The number of the part of every image."""
    strata = list(zip(images["domain"].tolist(), images["label"].tolist(), strict=True))
    groups: dict[str, Holdings] = {}
    for group, stratum in zip(images["group"].tolist(), strata, strict=True):
        groups.setdefault(group, Counter())[stratum] += 1
    totals, rooms = Counter(strata), Counter(stratum for held in groups.values() for stratum in held)
    targets = {stratum: _targets(totals[stratum], rooms[stratum], shares) for stratum in totals}
    parts: list[Holdings] = [Counter() for _ in shares]
    chosen: dict[str, int] = {}
    for group in sorted(groups, key=lambda name: (-groups[name].total(), draw(seed, name))):
        held = groups[group]
        chosen[group] = _neediest(parts, shares, held, targets, totals)
        parts[chosen[group]].update(held)
    _fill_empty(parts, groups, chosen, rooms)
    return images["group"].map(chosen)


def _targets(images: int, groups: int, shares: Sequence[float]) -> tuple[float, ...]:
    """How many images of a stratum each part should hold.

    Two parts get whole numbers: a lone group goes to the first part, and with more groups neither number
    is zero. More parts get fractions, so that rounding balances out over the strata.
    """
    if len(shares) != 2:
        return tuple(images * share for share in shares)
    second = min(max(round(images * shares[1]), 1), images - 1) if groups >= 2 else 0
    return (images - second, second)


def _neediest(
    parts: Sequence[Holdings],
    shares: Sequence[float],
    held: Holdings,
    targets: Mapping[Stratum, tuple[float, ...]],
    totals: Holdings,
) -> int:
    """The part that lacks most of what the group holds; in a tie, the part that is smallest for its share.

    Adding c images to a part that lacks d of n lowers the squared relative error of the stratum by (2 c d - c c) / n.
    """

    def need(number: int) -> tuple[float, float]:
        lack = sum(
            count * (2 * (targets[stratum][number] - parts[number][stratum]) - count) / totals[stratum]
            for stratum, count in held.items()
        )
        return round(lack, 9), -parts[number].total() / shares[number]

    return max(range(len(parts)), key=lambda number: (need(number), -number))


def _fill_empty(
    parts: Sequence[Holdings], groups: Mapping[str, Holdings], chosen: dict[str, int], rooms: Holdings
) -> None:
    """Move groups into parts without images of a stratum, if another part can spare a whole group."""
    for stratum in sorted((stratum for stratum in rooms if rooms[stratum] >= len(parts)), key=str):
        for number in (number for number, part in enumerate(parts) if not part[stratum]):
            spare = [name for name, held in groups.items() if held[stratum] and _can_spare(parts[chosen[name]], held)]
            if spare:
                group = min(spare, key=lambda name: (groups[name].total(), name))
                parts[chosen[group]].subtract(groups[group])
                parts[number].update(groups[group])
                chosen[group] = number


def _can_spare(part: Holdings, held: Holdings) -> bool:
    return all(part[stratum] > count for stratum, count in held.items())


def fair_order(images: pd.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Positions of all rows in an order in which any stretch is a fair sample of classes and domains.

    `images` has the columns domain, label and path, which names a row. Each stratum is shuffled and spread evenly, so
    that any stretch holds its share of it to within one image. The order is a hash of the names and depends neither on
    the order of the rows nor on the platform.
    """
    rank = images["path"].map(lambda name: draw("order", name))
    strata = images.groupby(["domain", "label"])
    place = rank.groupby([images["domain"], images["label"]]).rank(method="first") - 1
    offset = strata["path"].transform("min").map(lambda name: int(draw("offset", name)[:8], 16) / 2**32)
    position = (place + offset) / strata["path"].transform("size")
    return np.lexsort((rank.to_numpy(dtype="S64"), position.to_numpy()))
