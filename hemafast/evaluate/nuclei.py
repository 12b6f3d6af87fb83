"""How large the nuclei of each class are: what tells the scale of images whose classes are predicted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from hemafast.data.samples import Samples
from hemafast.engine.checkpoint import ModelCard
from hemafast.preparation.images.depth import spread
from hemafast.preparation.images.image_checks import decode_reference
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.nuclei import nucleus_diameter

FEWEST = 5
"""Nuclei of a class, of which the median is known."""
_MOST = 24  # images of a class that are looked at

Sizes = tuple[float | None, ...]


def nuclei_of(samples: Samples, card: ModelCard) -> Sizes | None:
    """The median diameter of the nuclei of each class, in micrometres.

    Args:
        samples: images in which the classes have the labels that they have in `card`.
        card: of a model. Images of its domains whose scale is known are looked at, 24 of a class at most.

    Returns:
        By class; None for one with fewer than FEWEST nuclei, and None for all if no class has a size.
    """
    scales = _scales(samples, card)
    rows = (np.flatnonzero((samples.labels == label) & (scales > 0)) for label in range(len(card.classes)))
    sizes = tuple(_median(samples, scales, some) for some in rows)
    return sizes if any(sizes) else None


def _scales(samples: Samples, card: ModelCard) -> npt.NDArray[np.float64]:
    """Micrometres per pixel of each file, by the window of it that is shown; 0 where it is not known."""
    field_of_view = card.view.field_of_view
    if field_of_view is None:
        return np.zeros(len(samples))
    known = np.isin(samples.domains, [name for name in card.domains if card.view.um_per_pixel.get(name)])
    return np.where(known, field_of_view / (samples.windows[:, 2] - samples.windows[:, 0]), 0.0)


def _median(samples: Samples, scales: npt.NDArray[np.float64], rows: npt.NDArray[np.int64]) -> float | None:
    some = spread(rows.tolist(), _MOST)
    found = [(_diameter(Path(samples.paths[row])), scales[row]) for row in some]
    diameters = [diameter * scale for diameter, scale in found if diameter is not None]
    return round(float(np.median(diameters)), 3) if len(diameters) >= FEWEST else None


def _diameter(file: Path) -> float | None:
    """In px; None without a nucleus, and for a file that is gone: a data set can be scored by its packed squares."""
    try:
        return nucleus_diameter(decode_reference(file.read_bytes()))
    except (OSError, UnreadableImageError):
        return None
