"""The class of an image by its nearest neighbours among features; pretraining and `embed` are scored by it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Features = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

NEIGHBOURS = 20
"""As many vote, by their closeness in angle (Wu et al. 2018, arXiv 1805.01978); fewer in small sets."""


def nearest_labels(features: Features, labels: Labels, asked: Features) -> Labels:
    """Labels (m,) of features `asked` (m, d) by a vote of their neighbours among `features` (n, d) with `labels`."""
    from sklearn.neighbors import KNeighborsClassifier

    model = KNeighborsClassifier(min(NEIGHBOURS, len(labels)), weights="distance", metric="cosine")
    return np.asarray(model.fit(features, labels).predict(asked))


def spread(features: Features) -> float:
    """How far features (n, d) spread over the directions that there are: 1 evenly, near 0 if all are the same.

    Of features scaled to length 1, the standard deviation of each component, averaged, times the square root of d
    (Chen and He 2021, arXiv 2011.10566).
    """
    length = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / np.maximum(length, np.finfo(np.float32).tiny)
    return float(unit.std(axis=0).mean() * np.sqrt(features.shape[1]))
