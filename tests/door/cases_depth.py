"""Bit depth and range of values."""

import io

import imagecodecs
import numpy as np
import tifffile
from door import Taken, cell, taken

BA, MO = "Lab/basophil", "Lab/monocyte"


def tiff(values: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, values, **options)
    return stream.getvalue()


def deep(number: int, top: int) -> np.ndarray:
    """Values from 0 to `top`, both of which occur: uint16 (32, 32, 3)."""
    values = np.random.default_rng(number).integers(0, top + 1, (32, 32, 3)).astype(np.uint16)
    values[0, 0], values[-1, -1] = 0, top
    return values


def scaled(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """0 to 255, rounded half up, grey repeated."""
    wanted = np.floor((values.astype(np.float64) - low) / (high - low) * 255 + 0.5).clip(0, 255).astype(np.uint8)
    return wanted if wanted.ndim == 3 else np.repeat(wanted[..., None], 3, axis=2)


def write(room, values, encode, suffix=".tif"):
    """Three images in each of two classes. Their values, by path."""
    names = [f"{folder}/{number}{suffix}" for folder in (BA, MO) for number in range(3)]
    found = {name: values(number) for number, name in enumerate(names)}
    room.write({name.removeprefix("Lab/"): encode(one) for name, one in found.items()}, "Lab")
    return found


@taken
def a_camera_of_12_bits(room):
    found = write(room, lambda number: deep(number, 4095), lambda one: tiff(one, photometric="rgb"))
    return Taken({BA: 3, MO: 3}, pixels={name: scaled(one, 0, 4095) for name, one in found.items()}, notes=("12 bits",))


@taken
def a_dim_camera_of_12_bits_that_the_user_names(room):
    found = write(room, lambda number: deep(number, 900), lambda one: tiff(one, photometric="rgb"))
    pixels = {name: scaled(one, 0, 4095) for name, one in found.items()}
    return Taken({BA: 3, MO: 3}, pixels=pixels, options={"bit_depth": {"": 12}})


@taken
def grey_tiff_of_16_bits(room):
    found = write(room, lambda number: deep(number, 65535)[..., 0], lambda one: tiff(one, photometric="minisblack"))
    return Taken({BA: 3, MO: 3}, pixels={name: scaled(one, 0, 65535) for name, one in found.items()})


@taken
def float_tiff_from_0_to_1(room):
    found = write(
        room,
        lambda number: (deep(number, 65535) / 65535).astype(np.float32),
        lambda one: tiff(one, photometric="rgb"),
    )
    return Taken({BA: 3, MO: 3}, pixels={name: scaled(one, 0, 1) for name, one in found.items()})


@taken
def float_tiff_with_holes(room):
    write(room, lambda number: deep(number, 255).astype(np.float32), lambda one: tiff(one, photometric="rgb"))
    broken = deep(9, 255).astype(np.float32)
    broken[3, 3] = np.nan
    room.write({"basophil/nan.tif": tiff(broken, photometric="rgb")}, "Lab")
    return Taken({BA: 3, MO: 3}, {f"{BA}/nan.tif": "range"})


@taken
def png_of_16_bits_that_holds_8(room):
    found = write(room, lambda number: deep(number, 255), imagecodecs.png_encode, ".png")
    return Taken({BA: 3, MO: 3}, pixels={name: one.astype(np.uint8) for name, one in found.items()})


@taken
def png_of_8_bits_stretched_to_16(room):
    found = write(room, lambda number: cell(500 + number).astype(np.uint16) * 257, imagecodecs.png_encode, ".png")
    return Taken({BA: 3, MO: 3}, pixels={name: (one // 257).astype(np.uint8) for name, one in found.items()})


@taken
def one_deep_image_among_plain_ones(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    values = deep(3, 65535)
    room.write({"basophil/deep.tif": tiff(values, photometric="rgb")}, "Lab")
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/deep.tif": scaled(values, 0, 65535)})


@taken
def two_cameras_in_two_laboratories(room):
    first, second = deep(1, 4095), deep(2, 16383)
    for lab, values in (("Lab", first), ("Other", second)):
        room.write(room.classes("basophil", "monocyte"), lab)
        room.write({"basophil/deep.tif": tiff(values, photometric="rgb")}, lab)
    counts = {
        f"{lab}/{label}": count for lab in ("Lab", "Other") for label, count in (("basophil", 4), ("monocyte", 3))
    }
    pixels = {"Lab/basophil/deep.tif": scaled(first, 0, 4095), "Other/basophil/deep.tif": scaled(second, 0, 16383)}
    return Taken(counts, pixels=pixels)


@taken
def signed_tiff_with_values_below_zero(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    values = deep(3, 2000).astype(np.int16) - 1000
    room.write({"basophil/signed.tif": tiff(values, photometric="rgb")}, "Lab")
    return Taken({BA: 3, MO: 3}, {f"{BA}/signed.tif": "range"})


@taken
def black_and_white_tiff_in_one_bit(room):
    room.write(room.classes("basophil", "monocyte"), "Lab")
    bits = cell(700)[..., 0] > 128
    room.write({"basophil/bits.tif": tiff(bits, photometric="minisblack")}, "Lab")
    return Taken({BA: 4, MO: 3}, pixels={f"{BA}/bits.tif": np.repeat(bits[..., None] * np.uint8(255), 3, axis=2)})
