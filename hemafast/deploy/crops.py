"""Which part of each image the model sees, so that cells have the scale it was trained on."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hemafast.deploy.inputs import Image
from hemafast.engine.checkpoint import View
from hemafast.errors import HemafastError
from hemafast.preparation.sources.containers import archive_suffix

_SMALLEST = 16  # px

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Crops:
    """The centre square that is cut out of each image."""

    sides: npt.NDArray[np.int64]
    """(images,): side in pixels of the image, at most its shorter side; 0 for the largest square."""
    scales: tuple[str, ...] = ()
    """Which scale is used for how many images, one sentence per domain."""
    unknown: int = 0
    """Images of unknown scale, which are seen whole."""


def choose_crops(images: Sequence[Image], view: View, um_per_pixel: float | None) -> Crops:
    """The part of each image that shows the model's field of view.

    The scale is `um_per_pixel`, else that of the domain that the innermost folder or zip around the image is named
    after. Arrays lie in no folder. Raises HemafastError if the field of view is only a few pixels wide.
    """
    field = view.field_of_view
    if field is None or (um_per_pixel is None and not any(view.um_per_pixel.values())):
        return Crops(np.zeros(len(images), dtype=np.int64))
    if um_per_pixel is not None:
        return Crops(np.full(len(images), _side(field, um_per_pixel), dtype=np.int64))
    sides = {domain: _side(field, scale) if scale else 0 for domain, scale in view.um_per_pixel.items()}
    names = frozenset(sides)
    domains = domains_of(images, names)
    counts = Counter(domains)
    used = {name: f"{scale:g} um/px" if scale else "seen whole" for name, scale in view.um_per_pixel.items()}
    known = names & counts.keys()
    return Crops(
        sides=np.array([sides[domain] if domain else 0 for domain in domains], dtype=np.int64),
        scales=tuple(f"{counts[name]} images of {name}: {used[name]}, as in training" for name in known),
        unknown=counts[None],
    )


def domains_of(images: Sequence[Image], names: frozenset[str]) -> list[str | None]:
    """The one of `names` that the innermost folder or archive around each image has; None without, and for arrays."""
    return [_domain_of(posixpath.dirname(image.name), names) if image.array is None else None for image in images]


def log_scales(crops: Sequence[Crops]) -> None:
    """Log which scale is used for which images, once for all models, and how many images have no known scale."""
    for said in sorted({said for one in crops for said in one.scales}):
        logger.info(said)
    if unknown := max(one.unknown for one in crops):
        logger.warning(
            "%d images are of unknown scale and are seen whole, unlike in training: give um_per_pixel (--um-per-pixel)",
            unknown,
        )


def _side(field_of_view: float, um_per_pixel: float) -> int:
    side = round(field_of_view / um_per_pixel)
    if side < _SMALLEST:
        raise HemafastError(
            f"{field_of_view:g} um are {side} pixels at {um_per_pixel:g} um/px: too few to show a cell.",
            "Check um_per_pixel (--um-per-pixel): it is micrometres per pixel.",
        )
    return side


@lru_cache(maxsize=1024)  # images of one folder follow each other
def _domain_of(folder: str, domains: frozenset[str]) -> str | None:
    """The innermost folder or archive (without its suffix) on a path whose name is a domain."""
    for part in reversed(posixpath.abspath(folder).split("/")):
        stem = part[: len(part) - len(archive_suffix(part))]
        if stem in domains:
            return stem
    return None
