"""Which part of each image a model is to see, so that a cell has the size that the model has learned."""

from __future__ import annotations

import logging
import posixpath
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hemafast.deploy.images import Image
from hemafast.engine.checkpoint import View
from hemafast.errors import HemafastError
from hemafast.prepare import safety

_SMALLEST = 16  # px

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Windows:
    """The centre square of each image that is seen."""

    sides: npt.NDArray[np.int64]
    """(images,): in pixels of the image, which may have fewer; 0 for the largest square."""
    scales: tuple[str, ...] = ()
    """What scale was taken for which images, in words."""
    unknown: int = 0
    """Images that are seen whole because their scale is not known, although that of others was in training."""


def choose_windows(images: Sequence[Image], view: View, um_per_pixel: float | None) -> Windows:
    """The part of each image that shows the field of view.

    The scale is `um_per_pixel`, or that of the domain that the innermost folder or zip around the image is named after.
    Raises HemafastError if the field of view is but a few pixels.
    """
    field = view.field_of_view
    if field is None or (um_per_pixel is None and not any(view.um_per_pixel.values())):
        return Windows(np.zeros(len(images), dtype=np.int64))
    if um_per_pixel is not None:
        return Windows(np.full(len(images), _side(field, um_per_pixel), dtype=np.int64))
    sides = {domain: _side(field, scale) if scale else 0 for domain, scale in view.um_per_pixel.items()}
    names = frozenset(sides)
    domains = [_domain_of(posixpath.dirname(image.name), names) for image in images]
    counts = Counter(domains)
    return Windows(
        sides=np.array([sides[domain] if domain else 0 for domain in domains], dtype=np.int64),
        scales=tuple(
            f"{counts[domain]} images of {domain}: {_named(view, domain)}" for domain in names & counts.keys()
        ),
        unknown=counts[None],
    )


def tell_scales(windows: Sequence[Windows]) -> None:
    """Log what scale was taken for which images, once for all models, and how many have none."""
    for said in sorted({said for one in windows for said in one.scales}):
        logger.info(said)
    if unknown := max(one.unknown for one in windows):
        logger.warning(
            "%d images are of unknown scale and are seen whole, which is not what the model has learned: say how many "
            "micrometres a pixel spans with --um-per-pixel",
            unknown,
        )


def _named(view: View, domain: str) -> str:
    scale = view.um_per_pixel[domain]
    return f"{scale:g} um/px, as in training" if scale else "seen whole, as in training"


def _side(field_of_view: float, um_per_pixel: float) -> int:
    side = round(field_of_view / um_per_pixel)
    if side < _SMALLEST:
        raise HemafastError(
            f"{field_of_view:g} um are {side} pixels at {um_per_pixel:g} um/px: too few to show a cell.",
            "Check --um-per-pixel: it is in micrometres.",
        )
    return side


@lru_cache(maxsize=1024)  # images of one folder come one after the other
def _domain_of(folder: str, domains: frozenset[str]) -> str | None:
    """The innermost part of a path, or of that of a zip without its suffix, that is the name of a domain."""
    for part in reversed(posixpath.abspath(folder).split("/")):
        stem = part[:-4] if safety.suffix_of(part) == ".zip" else part
        if stem in domains:
            return stem
    return None
