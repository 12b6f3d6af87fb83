"""What values of more than 8 bits become, so that cells are as bright as those the model was trained on."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hemafast.deploy.crops import domains_of
from hemafast.deploy.inputs import Image, Some, read_images
from hemafast.engine.checkpoint import View
from hemafast.preparation.images.depth import Range, Ranges, choose_ranges, fixed, may_be_deep
from hemafast.preparation.images.image_checks import strict_decoders
from hemafast.preparation.images.picture import FLOAT, INTEGER

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Depths:
    """The ranges of images."""

    general: Ranges
    """For images of no known domain."""
    by_domain: Mapping[str, Ranges]
    domains: Sequence[str | None]
    """Of each image; empty if none is known."""

    def of(self, row: int) -> Ranges:
        """The ranges of one image."""
        domain = self.domains[row] if self.domains else None
        return {**self.general, **self.by_domain[domain]} if domain else self.general


NO_DEPTHS = Depths({}, {}, ())


def choose_depths(images: Sequence[Image], view: View, bit_depth: int | None) -> Depths:
    """The range of values of each image.

    That of `bit_depth`, else that of the domain that the innermost folder or archive around the image is named after,
    else the one that all domains of the model share, else what a sample of the images shows: integers and float values
    each for themselves. Logs which one it is.
    """
    if bit_depth is not None:
        return Depths(fixed(bit_depth), {}, ())
    shared = _shared(view.ranges)
    general = _measured(images, {INTEGER, FLOAT} - shared.keys()) | shared
    if shared:
        logger.info("values of more than 8 bits: %s become 0 to 255, as in training", _words(shared))
    return Depths(general, view.ranges, domains_of(images, frozenset(view.ranges)))


def _shared(ranges: Mapping[str, dict[str, Range]]) -> dict[str, Range]:
    """The ranges that all domains agree on; empty if there are none, or several."""
    first, *others = ranges.values() or [{}]
    return first if all(other == first for other in others) else {}


def _measured(images: Sequence[Image], kinds: Collection[str]) -> dict[str, Range]:
    deep = np.flatnonzero([image.array is None and may_be_deep(image.name) for image in images])
    with strict_decoders():
        found = choose_ranges(Some(images, deep), read_images, kinds)
    if found:
        logger.warning(
            "%s values of more than 8 bits: %s become 0 to 255, by the images given, for the model does not say; "
            "give bit_depth (--bit-depth)",
            " and ".join(found),
            _words(found),
        )
    return found


def _words(ranges: Mapping[str, Range]) -> str:
    return " and ".join(sorted({str(one) for one in ranges.values()}))
