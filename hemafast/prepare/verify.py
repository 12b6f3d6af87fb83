"""Look at an image's bytes with decoders that refuse what is damaged, before anything is trained on them.

DALI's decoder must not be the only judge: flipped bytes in a JPEG give wrong pixels there and no error.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import simplejpeg
from PIL import Image

MAX_PIXELS = 64 * 10**6
"""Larger than any single-cell image by far; refused from the header alone, before memory is spent."""
MODES = frozenset({"RGB", "RGBA", "L"})
"""Pixel layouts (Pillow's names) that DALI turns into RGB without loss: alpha is dropped, grey is repeated."""


class UnreadableImageError(ValueError):
    """The bytes are not one whole image of a kind that can be trained on; the message says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of an image says: width and height in pixels, pixel layout (Pillow's mode), file format."""

    width: int
    height: int
    mode: str
    format: str


def verify_image(data: bytes) -> Header:
    """Decode an image strictly and return its header.

    Raises UnreadableImageError for bytes that are empty, truncated, damaged, not an image, of several pages, of a
    pixel layout outside MODES, or of more than MAX_PIXELS.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    with warnings.catch_warnings():
        # A decoder's warning means that it guessed; a guess is not a pixel.
        warnings.simplefilter("error")
        try:
            return _verify(data)
        except UnreadableImageError:
            raise
        except Exception as error:
            raise UnreadableImageError(f"{error or type(error).__name__}") from error


def _verify(data: bytes) -> Header:
    with Image.open(io.BytesIO(data)) as image:
        header = Header(image.width, image.height, image.mode, image.format or "unknown")
        if header.width * header.height > MAX_PIXELS:
            raise UnreadableImageError(f"{header.width} x {header.height} pixels are more than {MAX_PIXELS:,}")
        if getattr(image, "n_frames", 1) != 1:
            raise UnreadableImageError("the file holds several pages or frames")
        if header.mode not in MODES:
            raise UnreadableImageError(f"pixel layout {header.mode} is none of {', '.join(sorted(MODES))}")
        if header.format == "JPEG":
            simplejpeg.decode_jpeg(data, strict=True)
        else:
            image.load()
    return header
