"""Sizes and shapes of images."""

import struct
import zlib

import numpy as np
from door import Taken, cell, encode, taken
from PIL import Image

BA, MO = "Lab/basophil", "Lab/monocyte"
USUAL = {BA: 3, MO: 3}


def with_images(room, files):
    room.write({**room.classes("basophil", "monocyte"), **files}, "Lab")


@taken
def one_pixel(room):
    with_images(room, {"basophil/dot.png": encode(cell(900)[:1, :1])})
    return Taken(USUAL, {f"{BA}/dot.png": "not a cell"})


@taken
def a_line(room):
    with_images(
        room, {"basophil/line.png": encode(cell(900, 1, 400)), "monocyte/row.jpg": encode(cell(901, 400, 1), "JPEG")}
    )
    return Taken(USUAL, {f"{BA}/line.png": "not a cell", f"{MO}/row.jpg": "not a cell"})


@taken
def a_strip_of_a_slide(room):
    with_images(room, {"basophil/strip.jpg": encode(cell(900, 6000, 40), "JPEG")})
    return Taken(USUAL, {f"{BA}/strip.jpg": "too large"})


@taken
def a_field_of_view(room):
    with_images(room, {"basophil/field.jpg": encode(cell(900, 2500, 2500), "JPEG", quality=10)})
    return Taken(USUAL, {f"{BA}/field.jpg": "too large"})


@taken
def a_picture_that_claims_to_be_huge(room):
    data = bytearray(encode(cell(900)))
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    with_images(room, {"basophil/bomb.png": bytes(data)})
    return Taken(USUAL, {f"{BA}/bomb.png": "too large"})


@taken
def one_colour(room):
    flat = np.full((40, 40, 3), 240, np.uint8)
    with_images(room, {"basophil/blank.png": encode(flat), "monocyte/black.jpg": encode(flat * 0, "JPEG")})
    return Taken(USUAL, {f"{BA}/blank.png": "not a cell", f"{MO}/black.jpg": "not a cell"})


@taken
def four_times_as_long_as_wide_and_a_little_more(room):
    with_images(
        room, {"basophil/four.png": encode(cell(900, 128, 32)), "basophil/five.png": encode(cell(901, 132, 32))}
    )
    centre = cell(900, 128, 32)[:, 48:80]
    return Taken({BA: 4, MO: 3}, {f"{BA}/five.png": "not a cell"}, pixels={f"{BA}/four.png": centre})


@taken
def thumbnails_and_a_setting_for_them(room):
    small = {f"monocyte/small{side}.png": encode(cell(side, side, side)) for side in (8, 12, 15)}
    with_images(room, small)
    others = {f"{MO}/small8.png": "not a cell"}
    return Taken({BA: 3, MO: 5}, others, options={"min_side": 12})


@taken
def portrait_and_landscape_are_cut_in_the_middle(room):
    with_images(room, {"basophil/tall.png": encode(cell(900, 32, 64)), "monocyte/wide.png": encode(cell(901, 64, 32))})
    pixels = {f"{BA}/tall.png": cell(900, 32, 64)[16:48], f"{MO}/wide.png": cell(901, 64, 32)[:, 16:48]}
    return Taken({BA: 4, MO: 4}, pixels=pixels)


@taken
def sizes_of_every_kind(room):
    sides = ((33, 47), (100, 90), (300, 300), (1999, 600), (64, 17))
    with_images(room, {f"basophil/{w}x{h}.jpg": encode(cell(w, w, h), "JPEG") for w, h in sides})
    return Taken({BA: 8, MO: 3})


@taken
def a_photograph_turned_by_exif(room):
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(cell(900), exif=exif)
    with_images(room, {"basophil/turned.png": data})
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/turned.png": np.rot90(cell(900), -1)})
