"""The door for the bytes of images: verify and decode one strictly, re-encode it if need be.

DALI does not see them here: for a JPEG with flipped bytes it returns wrong pixels and no error, and some damaged images
crash it.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from hemafast.preparation.images.depth import Range, Ranges, to_8_bits
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.images.picture import Picture, refuse_slide
from hemafast.preparation.images.reference import naming_damage, open_picture
from hemafast.preparation.images.seams import refuse_seam

Pixels = npt.NDArray[np.uint8]

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".jp2": "JPEG2000",
    ".j2k": "JPEG2000",
    ".gif": "GIF",
    ".avif": "AVIF",
    ".mpo": "JPEG",
}
"""Suffixes of images, in lower case, and the format (Pillow's name; MPO begins as a JPEG) that each stands for."""

MAX_PIXELS = 64 * 10**6
"""Far more than any array of a single cell has."""
MIN_SIDE = 16
"""px: shorter side of the smallest image that can show a cell."""
_MAX_RATIO = 4  # longer side over shorter side of a cell's image

_SIGNS_OF_DAMAGE = ("invalid value offset", "could not read")  # in warnings of tifffile
_KEPT_PIXELS = 10**6  # larger references are decoded again when needed: 64 of them might fill the memory
_NO_RANGES: Mapping[str, Range] = {}


@dataclass(frozen=True, slots=True)
class Header:
    """What `verify_image` found out about an image."""

    width: int
    """px, upright."""
    height: int
    mode: str
    """Pixel layout in the original file: Pillow's name, with the type of values that are deeper than 8 bits."""
    format: str
    """Pillow's name, by content, of the original file."""
    kinds: tuple[str, ...] = ()
    """Keys of CONVERTED_KINDS."""
    reference: Pixels | None = None
    """uint8 (height, width, 3), upright; None for a large image, which is decoded again."""


def verify_image(data: bytes, name: str, ranges: Ranges = _NO_RANGES, min_side: int = MIN_SIDE) -> tuple[Header, bytes]:
    """Decode an image strictly, within `strict_decoders`.

    Args:
        data: the bytes of the file.
        name: its file name, for the suffix.
        ranges: what values of more than 8 bits become, as `choose_ranges` found out for its domain.
        min_side: px, the smallest side that is accepted.

    Returns:
        What it is, and the bytes to keep and to decode: `data`, or a PNG of the reference decoder's pixels for a form
        that DALI does not read exactly.

    Raises:
        UnreadableImageError: the image must be quarantined.
    """
    if not data:
        raise UnreadableImageError("empty")
    with naming_damage():
        picture = open_picture(data)
        refuse_shape(picture.width, picture.height, min_side)
        header = Header(picture.width, picture.height, picture.mode, picture.format, _kinds(picture, name))
        reference = _decode(data, picture, ranges)
        kept = reference if picture.width * picture.height <= _KEPT_PIXELS else None
        return replace(header, reference=kept), data if picture.plain else _png(reference)


@contextmanager
def strict_decoders() -> Iterator[None]:
    """Turn warnings of Pillow and tifffile into errors for `verify_image`: they mean that the decoder guessed.

    Warning filters and loggers belong to the process, not to a thread. Use this around a pool of threads, never inside
    one.
    """
    logger, strict = logging.getLogger("tifffile"), _RaisingHandler(logging.WARNING)
    propagates, logger.propagate = logger.propagate, False
    logger.addHandler(strict)
    try:
        with warnings.catch_warnings():
            for category in (UserWarning, Image.DecompressionBombWarning):
                warnings.filterwarnings("error", category=category, module=r"PIL\b")
            yield
    finally:
        logger.removeHandler(strict)
        logger.propagate = propagates


class _RaisingHandler(logging.Handler):
    """Raises what is logged of damage. A strange value of a tag that pixels do not depend on is none."""

    def emit(self, record: logging.LogRecord) -> None:
        message = " ".join(record.getMessage().split())
        if record.levelno >= logging.ERROR or any(words in message for words in _SIGNS_OF_DAMAGE):
            raise UnreadableImageError("damaged", message)


def pixels_of(header: Header, data: bytes) -> Pixels:
    """The upright pixels of what `verify_image` returned, by the reference decoder: uint8 (height, width, 3).

    Raises UnreadableImageError if they have only one colour.
    """
    pixels = decode_reference(data) if header.reference is None else header.reference
    refuse_one_colour(pixels)
    return pixels


def decode_reference(data: bytes) -> Pixels:
    """The upright pixels of the bytes that `verify_image` returned, by the reference decoder: (height, width, 3)."""
    return _rgb(open_picture(data), _NO_RANGES)


def refuse_shape(width: int, height: int, min_side: int = MIN_SIDE) -> None:
    """Raise UnreadableImageError for an image whose sides in px cannot be those of a single cell's image."""
    size = f"{width} x {height} px"
    refuse_slide(width, height)
    if min(width, height) < min_side:
        raise UnreadableImageError("not a cell", f"{size}: smaller than {min_side} px (--min-side)")
    if max(width, height) > _MAX_RATIO * min(width, height):
        raise UnreadableImageError("not a cell", f"{size}: more than {_MAX_RATIO} times as long as wide")


def refuse_one_colour(pixels: Pixels) -> None:
    """Raise UnreadableImageError for pixels (height, width, 3) that are all the same."""
    height, width, _ = pixels.shape
    some = pixels[:: max(1, height // 8), :: max(1, width // 8)]  # nearly always enough
    if (some == pixels[0, 0]).all() and (pixels == pixels[0, 0]).all():
        raise UnreadableImageError("not a cell", "one colour: there is nothing on it")


def _kinds(picture: Picture, name: str) -> tuple[str, ...]:
    own = "JPEG" if picture.format == "MPO" else picture.format
    found = {
        "re-encoded": not picture.plain,
        "misnamed": FORMATS.get(PurePosixPath(name).suffix.lower()) != own,
    }
    return (*picture.kinds, *(kind for kind, is_so in found.items() if is_so))


def _decode(data: bytes, picture: Picture, ranges: Ranges) -> Pixels:
    if picture.format not in ("JPEG", "MPO"):
        return _rgb(picture, ranges)
    pixels: Pixels = simplejpeg.decode_jpeg(data, strict=True)
    refuse_seam(pixels)
    return pixels if picture.plain else _rgb(picture, ranges)


def _rgb(picture: Picture, ranges: Ranges) -> Pixels:
    values = picture.read()
    if picture.depth:
        values = to_8_bits(values, picture.depth, ranges)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def _png(pixels: Pixels) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
