"""Look at an image's bytes with decoders that refuse what is damaged, before anything is trained on them.

DALI's decoder must not be the only judge: flipped bytes in a JPEG give wrong pixels there and no error.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels = npt.NDArray[np.uint8]

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
}
"""Suffixes of images, in lower case, and the format (Pillow's name) that each promises."""

MAX_PIXELS = 64 * 10**6
"""Larger than any single-cell image by far; refused from the header alone, before memory is spent."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What happens to a kind of image, and why."""

    action: Literal["convert", "quarantine"]
    meaning: str


POLICIES = {
    "grey": Policy("convert", "one channel: repeated to RGB"),
    "alpha": Policy("convert", "transparency: dropped, colours stay as stored"),
    "palette": Policy("convert", "palette: each index becomes its colour"),
    "16-bit": Policy("convert", "16 bits a channel: divided by 257 and rounded, so that 65535 is 255"),
    "rotated": Policy("convert", "an orientation in EXIF or TIFF: applied"),
    "misnamed": Policy("convert", "another format than the suffix says: read as what it is"),
    "empty": Policy("quarantine", "no bytes"),
    "not an image": Policy("quarantine", "no JPEG, PNG, TIFF or BMP"),
    "damaged": Policy("quarantine", "truncated, or a decoder met what it does not expect"),
    "checksum": Policy("quarantine", "its sha256 is not the one in --checksums"),
    "several frames": Policy("quarantine", "animated, or of several pages"),
    "too large": Policy("quarantine", f"more than {MAX_PIXELS // 10**6} million pixels by its header"),
    "CMYK": Policy("quarantine", "inks: their colour depends on a profile"),
    "pixel layout": Policy("quarantine", "neither grey, RGB nor palette of 8 or 16 bits: 1 bit, float, Lab ..."),
    "decoders disagree": Policy("quarantine", "DALI and the reference decoder read different pixels, or DALI none"),
    "field of view": Policy("quarantine", "it shows less than the square that --field-of-view asks for"),
    "contradiction": Policy("quarantine", "the same picture stands elsewhere under another class"),
    "not in the split": Policy("quarantine", "--split-file does not name it"),
    "twin validates": Policy("quarantine", "--split-file trains on it and validates on the same picture"),
}
"""What happens to each kind of image that is no plain 8-bit RGB."""

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
"""Kinds that each pixel layout (Pillow's mode) stands for; all others are quarantined."""

_KEPT_PIXELS = 10**6  # a reference of more is not kept from one station to the next: 64 of them might fill the memory
_ORIENTATION = 0x0112  # EXIF and TIFF tag
_BITS_PER_SAMPLE = 0x0102  # TIFF tag
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap width and height


class UnreadableImageError(ValueError):
    """The bytes cannot be trained on: `kind` is a key of POLICIES, the message says what was found."""

    def __init__(self, kind: str, message: str = "") -> None:
        super().__init__(message or POLICIES[kind].meaning)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of an image once it is verified."""

    width: int
    """px, after the orientation is applied."""
    height: int
    mode: str
    """Pixel layout in the file, Pillow's name."""
    format: str
    """JPEG, PNG, TIFF or BMP, by its bytes."""
    kinds: tuple[str, ...] = ()
    """Keys of POLICIES: what is converted."""
    compared: bool = False
    """Whether DALI's pixels must be those of the reference decoder; not for plain JPEG: both use libjpeg-turbo."""
    reference: Pixels | None = None
    """uint8 (height, width, 3) to compare with. None for an image so large that it is better decoded again."""


def verify_image(data: bytes, name: str) -> Header:
    """Decode an image strictly and return what it is; call it within `strict_decoders`.

    `name` is its file name, for the suffix. Raises UnreadableImageError for bytes that POLICIES quarantines.
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
        raise UnreadableImageError("damaged", _one_line(error)) from error


@contextmanager
def strict_decoders() -> Iterator[None]:
    """Within it, a warning of Pillow's is an error for `verify_image`: it means that the decoder guessed.

    Filters of warnings belong to the process, not to a thread, so this goes around a pool of threads, never into one.
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
            # Grey and an eighth of the size: damage is noticed by the entropy decoder, which reads every channel whole
            # in any case; of what comes after it, this is the least.
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
    """The pixels of a verified image as the reference decoder sees them: uint8 (height, width, 3), upright."""
    with _open(data) as image:
        return _reference(image)


def _open(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=sorted(set(FORMATS.values())))


def _has_several_frames(image: Any) -> bool:
    if image.format != "TIFF":
        return bool(getattr(image, "n_frames", 1) != 1)
    try:
        image.seek(1)  # to count them all takes longer than linear time
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
    """Whether a channel has 16 bits where Pillow's mode does not tell."""
    if image.format == "PNG":
        return data[24] == 16  # bit depth: ninth byte of the IHDR chunk, which begins at 16
    return image.format == "TIFF" and 16 in image.tag_v2.get(_BITS_PER_SAMPLE, ())


def _orientation(image: Any) -> int:
    """2 to 8 if the image is to be flipped or turned, 1 if it is upright or says nothing that has a meaning."""
    tags = image.tag_v2 if image.format == "TIFF" else image.getexif()
    found = tags.get(_ORIENTATION, 1)
    return found if found in range(2, 9) else 1


def _reference(image: Image.Image) -> Pixels:
    """The pixels as RGB, upright; copied no more than needed, for that is what costs most in a file of plain pixels."""
    image.info.pop("transparency", None)  # dropped, as alpha is; Pillow would warn of some forms of it
    upright: Image.Image = image if _orientation(image) == 1 else ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):
        grey = (np.asarray(upright).astype(np.uint32) + 128) // 257
        return np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)
    return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
