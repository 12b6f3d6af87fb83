"""Scale values of more than 8 bits to 0 to 255, by one range for all images of a domain.

A camera of 12 bits writes 0 to 4095 into files of 16 bits. One image does not show how many bits the camera has, but
the largest value of many does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from hemafast.config import STRICT
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.images.picture import FLOAT, INTEGER, Picture, Values
from hemafast.preparation.images.reference import naming_damage, open_picture
from hemafast.preparation.sources.safety import suffix_of

Item = TypeVar("Item")

SAMPLE = 300
"""Images of a domain that are looked at, evenly spread, for their range of values."""

_BITS = (8, 10, 12, 14, 16, 24, 32)  # of cameras
_TOPS = (1, 255, 65535)  # of float images, by convention
_OVERSHOOT = 0.05  # share of a range by which resampled float values may pass its ends
_DIMMEST = 0.25  # share of a range that the brightest value of a sample of stained blood reaches at least
_USUAL = 0.9  # share of the images that an integer range holds at least
_PERCENTILES = (0.1, 99.9)
_SHALLOW = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp", ".mpo"})
_VALUES = 4096  # taken of each image for percentiles


@dataclass(frozen=True, slots=True)
class Range:
    """The values that become 0 and 255."""

    __pydantic_config__ = STRICT

    low: float
    high: float
    clipped: bool = False
    """Whether values beyond it become 0 or 255. Otherwise an image that has some is quarantined."""

    def __str__(self) -> str:
        bits = int(self.high).bit_length()
        known = self.low == 0 and self.high == 2**bits - 1 and bits > 1
        return f"{self.low:g} to {self.high:.10g}" + (f" ({bits} bits)" if known else "")


Ranges = Mapping[str, Range]
"""By kind of values, INTEGER or FLOAT."""


@dataclass(slots=True)
class _Seen:
    """What a sample of images holds."""

    least: float = np.inf
    tops: list[float] = field(default_factory=list)
    """The largest value of each image."""
    some: list[Values] = field(default_factory=list)

    @property
    def most(self) -> float:
        """The largest value of all."""
        return max(self.tops)

    def add(self, values: Values) -> None:
        finite = values[np.isfinite(values)]
        if finite.size:
            self.least = min(self.least, float(finite.min()))
            self.tops.append(float(finite.max()))
            self.some.append(finite[:: -(-finite.size // _VALUES)].astype(np.float64))


def may_be_deep(name: str) -> bool:
    """Whether a file of this name may have more than 8 bits, as JPEG and its like never do."""
    return suffix_of(name) not in _SHALLOW


def fixed(bits: int) -> dict[str, Range]:
    """The ranges that a user chooses with a bit depth."""
    return dict.fromkeys((INTEGER, FLOAT), Range(0, 2**bits - 1))


def choose_ranges(
    items: Sequence[Item],
    read: Callable[[Sequence[Item]], Iterable[object]],
    kinds: Collection[str] = (INTEGER, FLOAT),
) -> dict[str, Range]:
    """The range of values of more than 8 bits in the images `items`, for each of the `kinds` that they have.

    `read` yields the bytes of some of them in order; what is no bytes, and what cannot be decoded, is passed over.
    Call it within `strict_decoders`.
    """
    seen = {INTEGER: _Seen(), FLOAT: _Seen()}
    for picture in _pictures(read(spread(items, SAMPLE))):
        if picture.depth in kinds:
            try:
                with naming_damage():
                    seen[picture.depth].add(picture.read())
            except UnreadableImageError:
                continue
    choose = {INTEGER: _integer_range, FLOAT: _float_range}
    return {kind: choose[kind](one) for kind, one in seen.items() if one.some}


def to_8_bits(values: Values, depth: str, ranges: Ranges) -> Values:
    """The values as uint8. Raises UnreadableImageError for values beyond the range, or if there is none for `depth`."""
    least, most = float(values.min()), float(values.max())
    if not np.isfinite(least + most):
        raise UnreadableImageError("range", "values that are not finite numbers")
    if depth not in ranges:
        problem = "more than 8 bits a channel, unlike the images that were looked at"
        raise UnreadableImageError("range", f"{problem}: give --bit-depth 16, or the bits of the camera")
    chosen = ranges[depth]
    low, width = chosen.low, chosen.high - chosen.low
    spare = _OVERSHOOT * width if depth == FLOAT else 0
    if not chosen.clipped and not low - spare <= least <= most <= chosen.high + spare:
        remedy = "convert it to PNG" if least < low - spare else "give the bits of the camera with --bit-depth"
        raise UnreadableImageError("range", f"values of {least:g} to {most:g}, beyond {chosen}: {remedy}")
    scaled = np.floor((values.astype(np.float64) - low) * 255 / width + 0.5)
    return scaled.clip(0, 255).astype(np.uint8)


def _pictures(contents: Iterable[object]) -> Iterable[Picture]:
    for data in contents:
        if isinstance(data, bytes) and data:
            try:
                with naming_damage():
                    picture = open_picture(data)
            except UnreadableImageError:
                continue
            yield picture


def spread(items: Sequence[Item], most: int) -> Sequence[Item]:
    """At most `most` of the items, evenly spread, in order."""
    return [items[place * len(items) // most] for place in range(most)] if len(items) > most else items


def _integer_range(seen: _Seen) -> Range:
    """A few images far above the others are not measured by: hot pixels, or files of another camera."""
    usual = float(np.quantile(seen.tops, _USUAL, method="lower"))
    top = usual if usual < _DIMMEST * seen.most else seen.most
    bits = next(bits for bits in _BITS if top < 2**bits)
    return Range(0, 2**bits - 1)


def _float_range(seen: _Seen) -> Range:
    for top in _TOPS:
        if seen.least >= -_OVERSHOOT * top and _DIMMEST * top <= seen.most <= (1 + _OVERSHOOT) * top:
            return Range(0, top)
    low, high = np.percentile(np.concatenate(seen.some), _PERCENTILES)
    return Range(float(low), float(high) if high > low else float(low) + 1, clipped=True)
