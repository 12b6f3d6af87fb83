"""Open TIFF images with tifffile: every common compression and layout, without the messages that libtiff prints."""

from __future__ import annotations

import io
import math
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import tifffile
from PIL import Image

from hemafast.preparation.images import png
from hemafast.preparation.images.kinds import CONVERT, UnreadableImageError, ink_values
from hemafast.preparation.images.picture import (
    FLOAT,
    INTEGER,
    Picture,
    Values,
    orientation_of,
    refuse_slide,
    upright,
    upright_size,
    without_alpha,
)
from hemafast.words import counted

_ORIENTATION = 274  # tag
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _INK, _YCBCR = 0, 1, 2, 3, 5, 6  # photometric interpretations
_PREMULTIPLIED = 1  # kind of extra sample
_JPEG, _PNG = 7, 34933
_PLAIN = frozenset({1, 5, 8, 32773, 32946})  # none, LZW, Deflate, PackBits, old Deflate
_OTHERS = frozenset({2, 3, 4, _JPEG, 34925, 50000, 34926})  # CCITT, JPEG, LZMA, Zstandard, its old number
_WITH_HEADER = frozenset({33003, 33005, 34712, _PNG, 50001})  # JPEG 2000, PNG, WebP: their headers claim a size
_ASCII, _SHORT, _LONG, _RATIONAL = 2, 3, 4, 5  # types of tags
_TYPES = (
    dict.fromkeys((258, 259, 262, 266, 274, 277, 284, 296, 317, 338, 339), (_SHORT,))
    | dict.fromkeys((254, 256, 257, 273, 278, 279, 322, 323, 324, 325), (_SHORT, _LONG))
    | dict.fromkeys((282, 283), (_RATIONAL,))
)
_TEXTS = frozenset({269, 270, 271, 272, 285, 305, 306, 315, 316})  # description, camera, program, date, author ...
_LARGEST = {_ORIENTATION: 8, 296: 3}  # values from 1
_MOST_PAGES = 32  # looked at
_MOST_SIDE = 2**16  # of a tile
_BY_FIJI = f"{CONVERT} with Fiji"


def open_tiff(data: bytes, limit: int) -> Picture:
    """Read the header of a TIFF whose sides are below `limit` px.

    Raises UnreadableImageError for a layout without one meaning, and whatever tifffile raises for a damaged file.
    """
    file = tifffile.TiffFile(io.BytesIO(data))
    page: Any = file.pages[0]
    refuse_slide(page.imagewidth, page.imagelength, limit)
    further = _further_pages(file)
    colours = _colours(page)
    alpha = page.samplesperpixel > (3 if colours == "RGB" else 1)
    _refuse_layout(page, colours, alpha)
    depth = {"u": INTEGER, "i": INTEGER, "f": FLOAT}.get(page.dtype.kind, "") if page.dtype.itemsize > 1 else ""
    tag = page.tags.get(_ORIENTATION)
    orientation = orientation_of(tag.value if tag else None)
    width, height = upright_size(page.imagewidth, page.imagelength, orientation)
    found = {
        "grey": colours == "L",
        "palette": colours == "P",
        "alpha": alpha,
        "scaled": depth,
        "rotated": orientation != 1,
        "first picture": further,
    }
    return Picture(
        format="TIFF",
        mode=colours + "A" * alpha + f";{page.dtype}" * bool(depth),
        width=width,
        height=height,
        kinds=tuple(kind for kind, is_so in found.items() if is_so),
        plain=orientation == 1
        and not further
        and not file.is_bigtiff
        and _is_plain(page, alpha)
        and _has_plain_tags(page, data),
        depth=depth,
        read=partial(_read, data, page, orientation),
    )


def _further_pages(file: tifffile.TiffFile) -> bool:
    """Whether reduced copies follow the first page. Raises UnreadableImageError for any other further page."""
    stack = (file.imagej_metadata or {}).get("images", 1) if file.is_imagej else 1
    number = 1
    for number in range(1, _MOST_PAGES):
        try:
            page: Any = file.pages[number]
        except IndexError:
            break
        if not page.is_reduced:
            stack = number + 1
            break
    if stack > 1:
        raise UnreadableImageError("several frames", "several pages: save each as its own PNG, for example with Fiji")
    return number > 1


def _colours(page: Any) -> str:
    """Pillow's name of the layout without alpha."""
    photometric = page.photometric
    if photometric == _INK:
        raise ink_values()
    if photometric in (_BLACK_IS_ZERO, _WHITE_IS_ZERO):
        return "L"
    if photometric == _RGB or (photometric == _YCBCR and page.compression == _JPEG):
        return "RGB"
    if photometric == _PALETTE and page.colormap is not None:
        return "P"
    name = getattr(photometric, "name", photometric)
    raise UnreadableImageError("pixel layout", f"TIFF of {name} values: {_BY_FIJI}")


def _refuse_layout(page: Any, colours: str, alpha: bool) -> None:
    """Refuse what has no single meaning, and compressions that are not read."""
    bits, dtype, extra = page.bitspersample, page.dtype, page.samplesperpixel - (3 if colours == "RGB" else 1)
    unspecified = 0 in page.extrasamples or not page.extrasamples
    problem = ""
    if (
        dtype is None
        or dtype.kind not in "buif"
        or (dtype.itemsize == 1 and dtype.kind == "i")
        or isinstance(bits, tuple)
    ):
        problem = f"values of {bits} bits in sample format {page.sampleformat}"
    elif page.planarconfig not in (1, 2):
        problem = f"planes of the unknown kind {page.planarconfig}"
    elif bits < 8 and (colours == "RGB" or bits not in (1, 2, 4)):
        problem = f"{colours} of {bits} bits"
    elif extra < 0 or extra > 1 or (alpha and colours != "RGB" and unspecified):
        problem = counted(page.samplesperpixel, "channel")
    elif bits > 8 and (page.photometric == _WHITE_IS_ZERO or colours == "P"):
        problem = f"{bits} bits with {'a palette' if colours == 'P' else 'white as zero'}"
    elif page.imagedepth > 1:
        problem = "a volume"
    elif page.compression not in _PLAIN | _OTHERS | _WITH_HEADER:
        problem = f"compression {getattr(page.compression, 'name', page.compression)}"
    if problem:
        raise UnreadableImageError("pixel layout", f"TIFF of {problem}: {_BY_FIJI}")


def _is_plain(page: Any, alpha: bool) -> bool:
    return (
        page.photometric in (_BLACK_IS_ZERO, _RGB)
        and page.compression in _PLAIN
        and (page.bitspersample, page.sampleformat, page.planarconfig, page.fillorder) == (8, 1, 1, 1)
        and (page.compression > 1 or page.is_tiled or sum(page.databytecounts) == page.nbytes)
        and _PREMULTIPLIED not in page.extrasamples
        and not (alpha and page.photometric == _BLACK_IS_ZERO)
    )


def _has_plain_tags(page: Any, data: bytes) -> bool:
    """Whether all tags are common ones, in order and of the usual form. DALI prints warnings about others, or fails."""
    tags = sorted(page.tags, key=lambda tag: tag.offset)
    codes = [tag.code for tag in tags]
    parts, samples = len(page.dataoffsets), page.samplesperpixel
    counts = {258: samples, 339: samples, 273: parts, 279: parts, 324: parts, 325: parts}
    return codes == sorted(set(codes)) and all(_is_plain_tag(tag, counts.get(tag.code, 1), data) for tag in tags)


def _is_plain_tag(tag: Any, count: int, data: bytes) -> bool:
    if tag.code in _TEXTS and tag.dtype == _ASCII:
        return bool(data[tag.valueoffset : tag.valueoffset + tag.count].find(b"\0") == tag.count - 1 >= 0)
    usual = tag.dtype in _TYPES.get(tag.code, ()) and tag.count == count
    return bool(usual and (tag.code not in _LARGEST or 1 <= tag.value <= _LARGEST[tag.code]))


def _read(data: bytes, page: Any, orientation: int) -> Values:
    _refuse_segments(data, page)
    planes, _, height, width, samples = page.shaped
    values: Values = page.asarray(maxworkers=1).reshape(planes, height, width, samples)
    values = values.transpose(1, 2, 3, 0).reshape(height, width, -1)
    colours = without_alpha(values) if page.photometric in (_RGB, _YCBCR) else values[..., 0]
    if _PREMULTIPLIED in page.extrasamples:
        colours = _divided(colours, values[..., -1])
    if page.photometric == _PALETTE:
        colours = (page.colormap >> 8).astype(np.uint8).T[colours.astype(np.intp)]
    elif page.bitspersample < 8:
        colours = colours.astype(np.uint8) * np.uint8(255 // (2**page.bitspersample - 1))
    if page.photometric == _WHITE_IS_ZERO:
        colours = 255 - colours
    return upright(colours, orientation)


def _divided(colours: Values, alpha: Values) -> Values:
    """Colours that were multiplied by alpha, as they were before, by Pillow's formula."""
    if colours.dtype.kind != "u":
        raise UnreadableImageError("pixel layout", f"TIFF of {colours.dtype} values multiplied by alpha: {_BY_FIJI}")
    top = np.iinfo(colours.dtype).max
    alpha = alpha.reshape(alpha.shape + (1,) * (colours.ndim - 2))
    before = np.minimum(colours.astype(np.uint64) * top // np.maximum(alpha, 1), top)
    return np.where(alpha == 0, colours, before).astype(colours.dtype)


def _refuse_segments(data: bytes, page: Any) -> None:
    """Refuse strips and tiles that lie outside the file, or whose own header claims another size than the page."""
    height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.imagelength, page.imagewidth)
    if max(height, width) > _MOST_SIDE or height * width > 16 * page.imagelength * page.imagewidth + 2**20:
        raise UnreadableImageError("damaged", f"tiles of {width} x {height} px in a smaller image")
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if not 0 < offset <= offset + count <= len(data) or count == 0:
            raise UnreadableImageError("damaged", "a strip or tile lies outside the file")
        segment = data[offset : offset + count]
        claimed = (0, 0)
        if page.compression == _JPEG:
            claimed = _check_jpeg(segment, page.jpegtables)
        elif page.compression == _PNG and not png.is_plain(png.read_chunks(segment)):
            raise UnreadableImageError("pixel layout", f"TIFF of PNGs with further chunks: {_BY_FIJI}")
        elif page.compression in _WITH_HEADER:
            with Image.open(io.BytesIO(segment)) as image:
                claimed = image.size
        if math.prod(claimed) > height * width:
            raise UnreadableImageError("damaged", f"a strip or tile that claims {claimed[0]} x {claimed[1]} px")


def _check_jpeg(segment: bytes, tables: bytes | None) -> tuple[int, int]:
    """Width and height of a JPEG within a TIFF, which keeps its tables elsewhere. Raises ValueError if damaged."""
    whole = tables[:-2] + segment[2:] if tables else segment
    height, width, *_ = simplejpeg.decode_jpeg_header(whole)
    simplejpeg.decode_jpeg(whole, colorspace="GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    return width, height
