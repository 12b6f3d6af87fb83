"""How sure a score is: what changes with other cells, with other seeds, and with both.

A *pass* is one set of answers to the same images: of one training, or of the trainings of all folds together, each of
which answers for the images that it has not seen. Another seed is another pass.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.evaluate.intervals import interval, plain
from hemafast.evaluate.metrics import Confusions, count_scores
from hemafast.experiments.resampled import Labels, Scores, resampled_confusions
from hemafast.metrics import f1_of

SCORES = ("macro_f1", "accuracy", "balanced_accuracy")
_LEVEL = 0.975  # quantile of the upper end of a 95 % interval


@dataclass(frozen=True, slots=True)
class Passes:
    """Answers of all passes to the same images."""

    labels: Labels
    """(images,): indices of the true classes."""
    answers: Mapping[str, Labels]
    """By pass, (images,): indices of the likeliest classes."""
    groups: Labels
    """(images,), from 0: the patient, slide or set of copies of each image."""
    domains: npt.NDArray[np.str_]
    """(images,)."""
    classes: Sequence[str]

    def among(self, chosen: npt.NDArray[np.bool_]) -> Passes:
        """The same for some of the images."""
        _, groups = np.unique(self.groups[chosen], return_inverse=True)
        answers = {name: answer[chosen] for name, answer in self.answers.items()}
        return Passes(self.labels[chosen], answers, groups, self.domains[chosen], self.classes)


def passes_of(images: pd.DataFrame, tables: Mapping[str, pd.DataFrame], classes: Sequence[str]) -> Passes:
    """The passes of some tables of answers.

    Args:
        images: label, group and domain of each.
        tables: by pass, a column `predicted` with one row for each image, in the same order.
        classes: in label order.
    """
    places = pd.Index(classes)
    return Passes(
        labels=places.get_indexer(pd.Index(images["label"])).astype(np.int64),
        answers={
            name: places.get_indexer(pd.Index(table["predicted"])).astype(np.int64) for name, table in tables.items()
        },
        groups=np.unique(images["group"], return_inverse=True)[1].astype(np.int64),
        domains=images["domain"].to_numpy(np.str_),
        classes=classes,
    )


def certainty(passes: Passes) -> dict[str, Any]:
    """Scores of the images, each a mean over the passes, with what changes them.

    Args:
        passes: one pass at least.

    Returns:
        `macro_f1`, `accuracy` and `balanced_accuracy`, each as `estimate_over` gives it; `images` and `groups`, how
        many there are; `per_class`, images, groups and F1 with its interval over cells; `confusion`, rows are true
        classes, of all passes added up; and `domains`, macro-F1, images and groups of each.
    """
    found = _confusions(passes)
    scores = [count_scores(one) for one in found]
    names = np.unique(passes.domains)
    return {
        **{name: estimate_over([one[name] for one in scores]) for name in SCORES},
        "images": len(passes.labels),
        "groups": int(passes.groups.max(initial=-1)) + 1,
        "per_class": _per_class(found, passes),
        "confusion": np.sum([one.first() for one in found], axis=0).tolist(),
        "domains": {str(name): _of_domain(passes.among(passes.domains == name)) for name in names},
    }


def estimate_over(scores: Sequence[Scores]) -> dict[str, Any]:
    """A mean over passes and its 95 % intervals, from the scores (1 + resamples,) of each, over the same resamples.

    Returns:
        `value`, the mean of the images themselves; `by_pass`, of each; `sd`, their standard deviation, None for one
        pass. Intervals, each [low, high]: `cells`, the bootstrap, for other cells and the same trainings; `seeds`,
        Student's t of the passes, for other trainings and the same cells; `both`, the bootstrap with a draw of that t
        added to each resample. The last two are None for one pass.
    """
    means: Scores = np.mean(scores, axis=0)
    own = [float(one[0]) for one in scores]
    estimate = {"value": plain(means[0]), "by_pass": [plain(one) for one in own], "cells": plain(interval(means))}
    if len(own) == 1:
        return estimate | {"sd": None, "seeds": None, "both": None}
    from scipy.stats import t

    spread, freedom = float(np.std(own, ddof=1)), len(own) - 1
    error = spread / np.sqrt(len(own))
    half = float(t.ppf(_LEVEL, freedom)) * error
    drawn = error * np.random.default_rng(0).standard_t(freedom, size=len(means) - 1)
    both = interval(np.clip(np.concatenate([means[:1], means[1:] + drawn]), 0, 1))
    seeds = np.clip([means[0] - half, means[0] + half], 0, 1)
    return estimate | {"sd": spread, "seeds": plain(seeds), "both": plain(both)}


def spread_of(scores: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation, least and most of the scores of several runs; `sd` is None for one run.

    Folds share most of their training images, so no interval follows from their spread (Bengio and Grandvalet 2004).
    """
    if not scores:
        return dict.fromkeys(("mean", "sd", "min", "max")) | {"runs": 0}
    return {
        "mean": float(np.mean(scores)),
        "sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "min": float(min(scores)),
        "max": float(max(scores)),
        "runs": len(scores),
    }


def _confusions(passes: Passes) -> list[Confusions]:
    return list(resampled_confusions(passes.labels, passes.answers, len(passes.classes), passes.groups).values())


def _of_domain(passes: Passes) -> dict[str, Any]:
    scores = [count_scores(one)["macro_f1"] for one in _confusions(passes)]
    return {
        "macro_f1": estimate_over(scores),
        "images": len(passes.labels),
        "groups": int(passes.groups.max(initial=-1)) + 1,
    }


def _per_class(found: Sequence[Confusions], passes: Passes) -> dict[str, Any]:
    f1 = np.mean([f1_of(one.hits, one.of_actual, one.of_predicted) for one in found], axis=0)
    ends = interval(f1)
    images = np.bincount(passes.labels, minlength=len(passes.classes))
    groups = [len(np.unique(passes.groups[passes.labels == label])) for label in range(len(passes.classes))]
    rows = zip(passes.classes, images.tolist(), groups, plain(f1[0]), plain(ends.T), strict=True)
    return {
        name: {"images": count, "groups": of, "f1": value, "cells": cells} for name, count, of, value, cells in rows
    }
