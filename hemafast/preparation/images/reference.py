"""Open an image with the reference decoder of its format: Pillow, tifffile, or imagecodecs for deep PNG, JPEG 2000."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from hemafast.preparation.images import png
from hemafast.preparation.images.kinds import CONVERT, UnreadableImageError, ink_values
from hemafast.preparation.images.picture import (
    INTEGER,
    MAX_SIDE,
    Picture,
    Values,
    orientation_of,
    refuse_slide,
    upright,
    upright_size,
    without_alpha,
)
from hemafast.preparation.images.tiff import open_tiff
from hemafast.preparation.sources import sniff

_ORIENTATION = 0x0112  # EXIF tag
_LAYOUTS = {
    "RGB": (),
    "RGBA": ("alpha",),
    "RGBX": ("alpha",),
    "L": ("grey",),
    "LA": ("grey", "alpha"),
    "P": ("palette",),
    "PA": ("palette", "alpha"),
    "1": ("grey",),
    "I;16": ("grey",),
}
"""Kinds of image by pixel layout (Pillow's mode). Other layouts are quarantined."""
_FRAMES = "an animation or several pictures: save each frame as its own PNG, for example with `magick in out-%d.png`"
_SIZE_OF_JPEG2000 = b"\xff\x4f\xff\x51"  # the marker that begins a code stream, and the one that its sizes follow


@contextmanager
def naming_damage() -> Iterator[None]:
    """Raise UnreadableImageError for whatever a decoder raises, except for a lack of memory."""
    try:
        yield
    except (UnreadableImageError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImageError("too large", f"{error}; hemafast takes images of single cells") from error
    except Exception as error:  # decoders raise almost anything
        raise UnreadableImageError("damaged", " ".join(str(error).split()) or type(error).__name__) from error


def open_picture(data: bytes, limit: int = MAX_SIDE) -> Picture:
    """Read the header of an image of any format whose sides are below `limit` px.

    Raises UnreadableImageError for what is no image or has no single meaning, and whatever decoders raise for damage.
    """
    head = data[: sniff.HEAD_BYTES]
    form = sniff.image_format(head)
    if not form:
        raise UnreadableImageError("not an image", f"its content is no known image: {sniff.kind_of(head, '')}")
    if form in sniff.UNREADABLE:
        words, how = sniff.UNREADABLE[form]
        raise UnreadableImageError("unreadable form", f"{words}: {CONVERT} {how}")
    return open_tiff(data, limit) if form == "TIFF" else _open_by_pillow(data, form, limit)


def _open_by_pillow(data: bytes, form: str, limit: int) -> Picture:
    if form == "JPEG":
        _refuse_rare_jpeg(data)
    chunks = png.read_chunks(data) if form == "PNG" else []
    try:
        image: Any = Image.open(io.BytesIO(data), formats=[form])
    except UnidentifiedImageError as error:
        raise UnreadableImageError("damaged", f"the header of a {form} image is cut or damaged") from error
    refuse_slide(image.width, image.height, limit)  # before anything is decoded: Pillow decodes a PNG to find its EXIF
    if image.format != "MPO" and getattr(image, "n_frames", 1) != 1:
        raise UnreadableImageError("several frames", _FRAMES)
    if image.mode == "CMYK":
        raise ink_values()
    if image.mode not in _LAYOUTS:
        raise UnreadableImageError("pixel layout", f"pixel layout {image.mode}: {CONVERT} with Fiji")
    deep = _is_deep(image, data)
    orientation = orientation_of(image.getexif().get(_ORIENTATION))
    width, height = upright_size(image.width, image.height, orientation)
    found = {
        "alpha": "transparency" in image.info and "alpha" not in _LAYOUTS[image.mode],
        "scaled": deep,
        "rotated": orientation != 1,
        "first picture": image.format == "MPO",
    }
    return Picture(
        format=image.format,
        mode=f"{image.mode.replace('I;16', 'L')};uint16" if deep else image.mode,
        width=width,
        height=height,
        kinds=(*_LAYOUTS[image.mode], *(kind for kind, is_so in found.items() if is_so)),
        plain=not deep and _is_upright(image) and _is_plain(image, data, chunks),
        depth=INTEGER if deep else "",
        read=partial(_read_deep, data, chunks, orientation) if deep else partial(_read, image, orientation),
    )


def _refuse_rare_jpeg(data: bytes) -> None:
    """Refuse a JPEG whose frame is not baseline or progressive Huffman coding of 8 bits."""
    at = 2
    while at + 5 <= len(data) and data[at] == 0xFF:
        marker, bits = data[at + 1], data[at + 4]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame, not tables
            if marker > 0xC2 or bits != 8:
                coding = "lossless or arithmetic coding" if marker > 0xC2 else f"{bits} bits"
                raise UnreadableImageError("pixel layout", f"JPEG of {coding}: {CONVERT} with Fiji")
            return
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")


def _is_upright(image: Any) -> bool:
    """Whether no decoder finds an orientation: some take one from damaged EXIF data, or one of the wrong type."""
    exif = image.getexif()
    return exif.get(_ORIENTATION, 1) == 1 and bool(exif) == ("exif" in image.info)


def _is_plain(image: Any, data: bytes, chunks: png.Chunks) -> bool:
    if image.format == "JPEG":
        # Colours stored as RGB, not YCbCr: not every decoder notices.
        return image.mode == "L" or not (image.info.get("adobe_transform") == 0 or image.layer[0][0] == ord("R"))
    if image.format == "BMP":
        length, bits, compression = data[14], data[28], data[30]
        return length >= 40 and bits in (8, 24, 32) and compression == 0
    return image.format == "PNG" and png.is_plain(chunks)


def _is_deep(image: Any, data: bytes) -> bool:
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(data) > 8
    return bool(image.format == "PNG" and data[24] == 16)  # bit depth: ninth byte of IHDR, which begins at 16


def _bits_of_jpeg2000(data: bytes) -> int:
    """Bits a channel. Raises UnreadableImageError for signed, subsampled or unequal channels."""
    at = data.index(_SIZE_OF_JPEG2000) + 40
    count = int.from_bytes(data[at : at + 2], "big")
    channels = {data[begin : begin + 3] for begin in range(at + 2, at + 2 + 3 * count, 3)}
    bits = next(iter(channels))[0] + 1
    if len(channels) != 1 or not 8 <= bits <= 16 or next(iter(channels))[1:] != b"\1\1":
        problem = "JPEG 2000 of signed, subsampled or unequal channels"
        raise UnreadableImageError("pixel layout", f"{problem}: {CONVERT} with `opj_decompress -i in.jp2 -o out.png`")
    return bits


def _read(image: Any, orientation: int) -> Values:
    """As RGB. Copying costs most for uncompressed files, so it is avoided where possible."""
    image.info.pop("transparency", None)  # dropped like alpha; Pillow would warn about some forms of it
    return upright(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def _read_deep(data: bytes, chunks: png.Chunks, orientation: int) -> Values:
    """A PNG of these chunks or a JPEG 2000: Pillow keeps 8 bits of deeper colours."""
    import imagecodecs  # late: training imports this module, and reads no such image

    encoded = png.pixels_alone(data, chunks) if chunks else data
    values: Values = imagecodecs.png_decode(encoded) if chunks else imagecodecs.jpeg2k_decode(encoded)
    if values.ndim == 3:
        values = without_alpha(values) if values.shape[2] >= 3 else values[..., 0]
    return upright(values, orientation)
