"""Which images make up an epoch, and in which order: each image once, or rare classes more often."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def epoch_order(
    labels: npt.NDArray[np.int64], share: float, seed: int, epoch: int, generator: np.random.Generator
) -> Rows:
    """Rows of one epoch, as many as there are labels, in random order.

    With a `share` of 0 it is a permutation. Otherwise each class has a quota, filled from permutations of its images
    that continue across epochs: an image repeats only after all other images of its class.
    """
    if not share:
        return generator.permutation(len(labels))
    classes = np.unique(labels)
    quotas = _quotas(labels, classes, share)
    taken, after = (_whole(quotas * number) for number in (epoch, epoch + 1))
    parts = [
        _stream(np.flatnonzero(labels == label), int(label), start, stop, seed)
        for label, start, stop in zip(classes, taken, after, strict=True)
    ]
    return generator.permutation(np.concatenate(parts))


def _quotas(labels: npt.NDArray[np.int64], classes: npt.NDArray[np.int64], share: float) -> npt.NDArray[np.float64]:
    """(classes,): images of each class per epoch, not rounded; the sum is the number of labels."""
    counts = np.array([(labels == label).sum() for label in classes], dtype=np.float64)
    return share * len(labels) / len(classes) + (1 - share) * counts


def _whole(quotas: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Quotas rounded to the same sum: the largest remainders are rounded up."""
    down = np.floor(quotas + 1e-9)
    left = round(float((quotas - down).sum()))
    order = np.argsort(down - quotas, kind="stable")
    down[order[:left]] += 1
    return down.astype(np.int64)


def _stream(members: Rows, label: int, start: int, stop: int, seed: int) -> Rows:
    """Elements `start` to `stop` of an endless sequence of permutations of `members`."""
    first, last = start // len(members), -(-stop // len(members))
    rounds = [
        np.random.default_rng(np.random.SeedSequence([seed, number], spawn_key=(label,))).permutation(members)
        for number in range(first, last)
    ]
    begin = start - first * len(members)
    return np.concatenate([*rounds, members[:0]])[begin : begin + stop - start]
