"""Check one image: its bytes with a strict decoder, and DALI's pixels against that decoder's.

DALI alone is not enough: for a JPEG with flipped bytes it returns wrong pixels and no error.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
"""Suffixes of images, in lower case, and the format (Pillow's name) that each stands for."""

MAX_PIXELS = 64 * 10**6
"""Far more than any single-cell image has. Larger images are refused by their header, before memory is spent."""

_TOLERANCE = 1  # largest difference between DALI's pixels and the reference, of 255: rounding

CONVERTED_KINDS = {
    "grey": "one channel: repeated to RGB",
    "alpha": "transparency: dropped, colours stay as stored",
    "palette": "palette: each index becomes its colour",
    "16-bit": "16 bits a channel: divided by 257 and rounded, so that 65535 is 255",
    "rotated": "an orientation in EXIF or TIFF: applied",
    "misnamed": "the suffix names another format: read by its content",
}
"""Kinds of image that are converted to plain 8-bit RGB, and how."""

QUARANTINED_KINDS = {
    "empty": "no bytes",
    "not an image": "not a JPEG, PNG, TIFF or BMP",
    "damaged": "truncated or corrupt: a decoder failed or warned",
    "checksum": "its sha256 differs from the one in --checksums",
    "several frames": "an animation, or several pages",
    "too large": f"more than {MAX_PIXELS // 10**6} million pixels by its header",
    "CMYK": "ink values: their colours depend on a profile",
    "pixel layout": "not grey, RGB or palette of 8 or 16 bits: 1 bit, float, Lab ...",
    "decoders disagree": "DALI fails, or reads other pixels than the reference decoder",
    "field of view": "smaller than the square that --field-of-view asks for",
    "contradiction": "the same picture is also in another class",
    "not in the split": "--split-file does not list it",
    "twin validates": "the same picture is held out: in the test split or, for a training image, in validation",
}
"""Kinds of image that are quarantined, and why."""

_LAYOUTS = {
    "RGB": (),
    "RGBA": ("alpha",),
    "RGBX": ("alpha",),
    "L": ("grey",),
    "LA": ("grey", "alpha"),
    "P": ("palette",),
    "PA": ("palette", "alpha"),
    "I;16": ("grey", "16-bit"),
    "I;16B": ("grey", "16-bit"),
}
"""Kinds of image by pixel layout (Pillow's mode). Other layouts are quarantined."""

_KEPT_PIXELS = 10**6  # larger references are decoded again when needed: 64 of them might fill the memory
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_BITS_PER_SAMPLE = 0x0102  # TIFF tag
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap width and height


class UnreadableImageError(ValueError):
    """An image that must be quarantined: `kind` is a key of QUARANTINED_KINDS, the message says why."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or QUARANTINED_KINDS[kind])
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Header:
    """What `verify_image` found out about an image."""

    width: int
    """px, upright."""
    height: int
    mode: str
    """Pixel layout in the file (Pillow's name)."""
    format: str
    """JPEG, PNG, TIFF or BMP, by content."""
    kinds: tuple[str, ...] = ()
    """Keys of CONVERTED_KINDS."""
    compared: bool = False
    """Whether DALI's pixels are compared with the reference. Not for plain JPEG: both decoders are libjpeg-turbo."""
    reference: Pixels | None = None
    """uint8 (height, width, 3) to compare with; None for a large image, which is decoded again."""


def verify_image(data: bytes, name: str) -> Header:
    """Decode an image strictly, within `strict_decoders`. `name` is its file name, for the suffix.

    Raises UnreadableImageError if the image must be quarantined.
    """
    if not data:
        raise UnreadableImageError("empty")
    try:
        return _verify(data, name)
    except (UnreadableImageError, MemoryError):
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("too large", str(error)) from error
    except Exception as error:  # decoders raise almost anything
        raise UnreadableImageError("damaged", " ".join(str(error).split()) or type(error).__name__) from error


@contextmanager
def strict_decoders() -> Iterator[None]:
    """Turn Pillow's warnings into errors for `verify_image`: they mean that the decoder guessed.

    Warning filters belong to the process, not to a thread. Use this around a pool of threads, never inside one.
    """
    with warnings.catch_warnings():
        for category in (UserWarning, Image.DecompressionBombWarning):
            warnings.filterwarnings("error", category=category, module=r"PIL\b")
        yield


def _verify(data: bytes, name: str) -> Header:
    with _open(data) as image:
        if image.width * image.height > MAX_PIXELS:
            raise UnreadableImageError("too large", f"{image.width} x {image.height} px by its header")
        if _has_several_frames(image):
            raise UnreadableImageError("several frames")
        if image.mode == "CMYK":
            raise UnreadableImageError("CMYK")
        if image.mode not in _LAYOUTS:
            raise UnreadableImageError("pixel layout", f"pixel layout {image.mode}")
        orientation = _orientation(image)
        kinds = _kinds(image, data, name, orientation)
        plain_jpeg = image.format == "JPEG" and orientation == 1
        if image.format == "JPEG":
            # The entropy decoder notices damage, and it always reads every channel. Grey at an eighth of the size
            # saves what follows it.
            simplejpeg.decode_jpeg(data, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
        width, height = image.size
        if orientation in _TURNED and image.format != "TIFF":  # Pillow turns TIFF by itself
            width, height = height, width
        header = Header(width, height, image.mode, image.format or "", kinds, compared=not plain_jpeg)
        if plain_jpeg:
            return header
        reference = _reference(image)
        return replace(header, reference=reference) if width * height <= _KEPT_PIXELS else header


def decode_reference(data: bytes) -> Pixels:
    """The upright pixels of a verified image by the reference decoder: uint8 (height, width, 3)."""
    with _open(data) as image:
        return _reference(image)


def refuse_other_pixels(data: bytes, header: Header, pixels: Pixels) -> None:
    """Compare the pixels (height, width, 3) that DALI reads in `data` with those of the reference decoder.

    `header` is what `verify_image` returned. Raises UnreadableImageError if the two differ by more than rounding.
    """
    if pixels.shape != (header.height, header.width, 3):
        raise UnreadableImageError("decoders disagree", f"DALI reads an image of {pixels.shape}")
    if header.compared:
        reference = decode_reference(data) if header.reference is None else header.reference
        if np.array_equal(reference, pixels):  # the usual case, and quick
            return
        difference = int(np.abs(reference.astype(np.int16) - pixels).max())
        if difference > _TOLERANCE:
            raise UnreadableImageError("decoders disagree", f"they differ by up to {difference} of 255")


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))


def _has_several_frames(image: Any) -> bool:
    if image.format != "TIFF":
        return bool(getattr(image, "n_frames", 1) != 1)
    try:
        image.seek(1)  # counting all of them takes more than linear time
    except EOFError:
        return False
    return True


def _kinds(image: Image.Image, data: bytes, name: str, orientation: int) -> tuple[str, ...]:
    kinds = list(_LAYOUTS[image.mode])
    if "transparency" in image.info:
        kinds.append("alpha")
    if "16-bit" not in kinds and _has_16_bits(image, data):
        kinds.append("16-bit")
    if orientation != 1:
        kinds.append("rotated")
    if FORMATS.get(PurePosixPath(name).suffix.lower()) != image.format:
        kinds.append("misnamed")
    return tuple(kinds)


def _has_16_bits(image: Any, data: bytes) -> bool:
    """Whether a channel has 16 bits although Pillow's mode does not say so."""
    if image.format == "PNG":
        return data[24] == 16  # bit depth: ninth byte of the IHDR chunk, which begins at 16
    return image.format == "TIFF" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())


def _orientation(image: Any) -> int:
    """2 to 8 for an image to flip or turn, 1 for an upright one or an invalid tag."""
    tags = image.tag_v2 if image.format == "TIFF" else image.getexif()
    found = tags.get(_ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def _reference(image: Image.Image) -> Pixels:
    """The upright pixels as RGB. Copying costs most for uncompressed files, so it is avoided where possible."""
    image.info.pop("transparency", None)  # dropped like alpha; Pillow would warn about some forms of it
    upright: Image.Image = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))
