"""An image as its header describes it, whatever its format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.preparation.images.kinds import UnreadableImageError

Values = npt.NDArray[Any]
"""Decoded values: (height, width) grey or (height, width, 3) RGB, upright, without alpha; uint8 or deeper."""

MAX_SIDE = 2000
"""px: images with such a side or a longer one are slides and fields of view. They are refused by their header, before
memory is spent."""

INTEGER, FLOAT = "integer", "float"
"""Kinds of values of more than 8 bits."""

_UPRIGHT: dict[int, Callable[[Values], Values]] = {
    1: lambda values: values,
    2: lambda values: values[:, ::-1],
    3: lambda values: values[::-1, ::-1],
    4: lambda values: values[::-1],
    5: lambda values: values.swapaxes(0, 1),
    6: lambda values: np.rot90(values, -1),
    7: lambda values: values.swapaxes(0, 1)[::-1, ::-1],
    8: np.rot90,
}
"""By orientation, as EXIF and TIFF number them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What the header of an image says."""

    format: str
    """Pillow's name."""
    mode: str
    """Pixel layout in the file: Pillow's name; with the type of the values, as `RGB;uint16`, if they are deeper."""
    width: int
    """px, upright."""
    height: int
    kinds: tuple[str, ...]
    """Keys of CONVERTED_KINDS that its layout calls for."""
    plain: bool
    """Whether DALI reads its bytes as they are, exactly like the reference decoder and without a word."""
    depth: str
    """INTEGER or FLOAT for values of more than 8 bits; empty for 8."""
    read: Callable[[], Values]
    """Decode it with the reference decoder."""


def refuse_slide(width: int, height: int, limit: int = MAX_SIDE) -> None:
    """Raise UnreadableImageError for an image of that many px, if it must show far more than one cell."""
    if max(width, height) >= limit:
        takes = "hemafast takes images of single cells, tens to hundreds of px a side: cut out the cells first"
        problem = f"{width} x {height} px by its header: a slide or a field of view; {takes}"
        raise UnreadableImageError("too large", problem)


def upright_size(width: int, height: int, orientation: int) -> tuple[int, int]:
    """Width and height after `upright`."""
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def upright(values: Values, orientation: int) -> Values:
    """The values turned and flipped as an orientation in EXIF or TIFF says."""
    return _UPRIGHT[orientation](values)


def without_alpha(values: Values) -> Values:
    """The colours of (height, width, 3 or more); contiguous, because they are hashed and scaled next."""
    if values.shape[2] == 3:
        return values
    colours = np.empty((*values.shape[:2], 3), values.dtype)
    for channel in range(3):  # numpy takes three times as long for three values at a time
        colours[..., channel] = values[..., channel]
    return colours


def orientation_of(tag: object) -> int:
    """2 to 8 for an image to flip or turn; 1 for an upright one, or an invalid or missing tag."""
    return tag if isinstance(tag, int) and tag in _UPRIGHT else 1
