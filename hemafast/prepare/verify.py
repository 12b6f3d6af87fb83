"""Look at an image's bytes with decoders that refuse what is damaged, before anything is trained on them.

DALI's decoder must not be the only judge: flipped bytes in a JPEG give wrong pixels there and no error.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import simplejpeg
from PIL import Image, UnidentifiedImageError

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
    """Decode an image strictly and return its header; call it within `strict_decoders`.

    Raises UnreadableImageError for bytes that are empty, truncated, damaged, not an image, of several pages, of a
    pixel layout outside MODES, or of more than MAX_PIXELS.
    """
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        return _verify(data)
    except UnreadableImageError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("it is not an image") from error
    except Exception as error:  # decoders raise almost anything
        raise UnreadableImageError(str(error) or type(error).__name__) from error


@contextmanager
def strict_decoders() -> Iterator[None]:
    """Within it, a decoder's warning is an error for `verify_image`: it means that the decoder guessed.

    Filters of warnings belong to the process, not to a thread, so this goes around a pool of threads, never into one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


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
