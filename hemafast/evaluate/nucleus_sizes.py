"""How large the nuclei of each class are: what tells the scale of images whose classes are predicted."""

from __future__ import annotations

import numpy as np

from hemafast.data.dataset import Dataset
from hemafast.engine.checkpoint import ModelCard
from hemafast.errors import HemafastError
from hemafast.preparation.images.depth import spread
from hemafast.preparation.images.image_checks import decode_reference
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.nuclei import nucleus_diameter
from hemafast.preparation.reader import read_image
from hemafast.preparation.split import TRAIN

FEWEST = 5
"""Nuclei of a class, of which the median is known."""
_MOST = 24  # images of a class that are looked at
_COLUMNS = ("path", "sha256", "domain", "width", "height")

Sizes = tuple[float | None, ...]


def nuclei_of(dataset: Dataset, card: ModelCard) -> Sizes | None:
    """The median diameter of the nuclei of each class, in micrometres.

    Args:
        dataset: of its training images, at most 24 of a class are read.
        card: of a model that was trained on it.

    Returns:
        By class; None for one with fewer than FEWEST nuclei. None for all if no class has a size, or if the model sees
        images whole: then it knows no scale.
    """
    if card.view.field_of_view is None:
        return None
    images = dataset.images(TRAIN)
    known = images[images["domain"].isin(card.domains)]
    sizes = []
    for name in card.classes:
        own = known[known["label"] == name]
        some = own.iloc[list(spread(range(len(own)), _MOST))]
        found = (_diameter(dataset, *row) for row in zip(*(some[one] for one in _COLUMNS), strict=True))
        sizes.append(_median([diameter for diameter in found if diameter is not None]))
    return tuple(sizes) if any(sizes) else None


def _diameter(dataset: Dataset, path: str, sha256: str, domain: str, width: int, height: int) -> float | None:
    """In um; None without a nucleus or a scale, and for a file that is gone or changed: squares are enough to score."""
    scale = dataset.info.domains[domain].um_per_pixel_of(min(width, height))
    try:
        diameter = nucleus_diameter(decode_reference(read_image(dataset.folder / path, sha256))) if scale else None
    except (HemafastError, UnreadableImageError):
        return None
    return None if diameter is None or scale is None else diameter * scale


def _median(diameters: list[float]) -> float | None:
    return round(float(np.median(diameters)), 3) if len(diameters) >= FEWEST else None
