"""DALI operators that apply the draws of a policy to uint8 RGB images, on a CPU or a GPU.

Each takes and returns nodes of a pipeline. `turn`, `cover`, `recolour` and `blur` have two forms, like
`pixels.cut_window`: DALI's own for the GPU, and a compiled kernel for the CPU, where it is several times faster.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hemafast.data.augment import ENHANCEMENTS, MAGNITUDES
from hemafast.pixel_constants import DENSITY_STEPS, LEAST_SPREAD, LEVELS, REACH, SOFT, SPREADS, WHITE

Node = Any  # nvidia.dali.data_node.DataNode; DALI ships no usable annotations

ERASED = (124, 116, 104)
"""Colour of a blank rectangle: ImageNet's mean, which most networks see as zero."""


def turn(pixels: Node, matrix: Node, size: int, *, whole: bool, compiled: bool) -> Node:
    """Turn each image by its matrix (2, 3) into (size, size, 3), taking nearest pixels; outside the image it is black.

    `whole` promises that the matrices are symmetries of the square, with shifts that stay within the image.
    """
    from nvidia.dali import fn, types

    if compiled:
        from hemafast import kernels

        kernel = kernels.turn_whole if whole else kernels.turn
        return fn.reshape(kernels.operator(kernel, size)(pixels, matrix), layout="HWC")
    return fn.warp_affine(pixels, matrix=matrix, size=(size, size), interp_type=types.INTERP_NN, fill_value=0)


def enhance(pixels: Node, operations: Node, weaken: Node, count: int, magnitude: int) -> Node:
    """Apply `count` of ENHANCEMENTS in order, each at `magnitude`: the colour operations of RandAugment."""
    from nvidia.dali.auto_aug.core import select, signed_bin

    choices = _enhancements()
    strength = signed_bin(magnitude, random_sign=weaken)
    for index in range(count):
        pixels = select(
            choices, operations[index], pixels, magnitude_bin=strength[index], num_magnitude_bins=MAGNITUDES
        )
    return pixels


def _enhancements() -> list[Any]:
    """ENHANCEMENTS in DALI, with torchvision's ranges of magnitude."""
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import augmentations
    from nvidia.dali.auto_aug.core import augmentation

    @augmentation(  # type: ignore[untyped-decorator]
        mag_range=(0, 0.9), randomly_negate=True, mag_to_param=augmentations.sharpness_kernel, param_device="auto"
    )
    def sharpness(pixels: Node, kernel: Node) -> Node:
        return fn.filter(pixels, kernel)  # DALI's own uses a deprecated name, and warns

    @augmentation  # type: ignore[untyped-decorator]
    def equalize(pixels: Node, _: None) -> Node:
        return fn.equalize(pixels)  # the same

    ours = {
        "as it is": augmentations.identity,
        "posterize": augmentations.posterize.augmentation(mag_range=(8, 4)),
        "solarize": augmentations.solarize.augmentation(mag_range=(255, 0)),
        "sharpness": sharpness,
        "equalize": equalize,
    }
    return [ours.get(name) or getattr(augmentations, name) for name in ENHANCEMENTS]


def stain(pixels: Node, matrix: Node, size: int) -> Node:
    """Map the natural optical densities (red, green, blue, 1) of images of `size` pixels by a matrix (3, 4) each."""
    from nvidia.dali import fn, types

    values, steps = np.arange(256), np.arange(2**16)
    density = DENSITY_STEPS * -np.log((values + 1) / 256)
    light = np.clip(np.rint(256 * np.exp(-steps / DENSITY_STEPS) - 1), 0, 255)
    # Tables for logarithm and exponential: DALI computes both slowly on a CPU.
    densities = fn.lookup_table(pixels, keys=values.tolist(), values=density.tolist(), dtype=types.FLOAT)
    points = fn.reshape(densities, shape=[size * size, 3], layout="")
    in_steps = matrix * types.Constant(np.array([1, 1, 1, DENSITY_STEPS], np.float32))
    changed = fn.cast(fn.coord_transform(points, MT=in_steps), dtype=types.UINT16)  # clips at zero and full density
    light_again = fn.lookup_table(changed, keys=steps.tolist(), values=light.tolist(), dtype=types.UINT8)
    return fn.reshape(light_again, shape=[size, size, 3], layout="HWC")


def cover(pixels: Node, background: Node, size: int, *, compiled: bool) -> Node:
    """Give images of `size` pixels one colour outside a circle about their centre.

    A row (6,) of `background` is the radius in pixels, and the colour in levels: a factor of the white point, a factor
    of the mean colour, and three values to add. The white point is the smallest value of each channel that 95 % of the
    pixels do not exceed.
    """
    from nvidia.dali import fn, math, types

    from hemafast import kernels

    if compiled:
        return fn.reshape(kernels.operator(kernels.cover, size)(pixels, background), layout="HWC")
    radius, white, mean, added = (_beside(pixels, background[part]) for part in (0, 1, 2, slice(3, 6)))
    colour = white * _white_point(pixels, size) + mean * fn.reductions.mean(pixels, axes=(0, 1)) + added
    squares = (np.arange(size, dtype=np.float32) + 0.5 - size / 2) ** 2
    across, down = (types.Constant(squares.reshape(shape), device=pixels.device) for shape in ((1, -1, 1), (-1, 1, 1)))
    kept = math.clamp(1 - (math.sqrt(across + down) - radius) / (SOFT * size / 2), 0.0, 1.0)
    return fn.reshape(fn.cast(colour + kept * (pixels - colour), dtype=types.UINT8), layout="HWC")


def _white_point(pixels: Node, size: int) -> Node:
    """(3,): found bit by bit, because DALI has neither histogram nor percentile."""
    from nvidia.dali import fn, types

    point = fn.reductions.min(pixels, axes=(0, 1)) * 0
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        below = fn.reductions.sum(fn.cast(pixels < point + bit, dtype=types.INT32), axes=(0, 1))
        point = point + bit * (below < WHITE * size**2)
    return point


def recolour(pixels: Node, change: Node, size: int, *, compiled: bool, standardize: bool = False) -> Node:
    """Change each channel of images of `size` pixels on its own.

    A row of `change` (3, 3) has, for one channel, a factor of the optical density, then a factor of the distance from
    the mean, and levels to add. With `standardize`, each channel gets the mean LEVELS and spread SPREADS before these.
    """
    from nvidia.dali import fn, math, types

    if compiled:
        from hemafast import kernels

        kernel = kernels.standardize if standardize else kernels.recolour
        return fn.reshape(kernels.operator(kernel, size)(pixels, change), layout="HWC")
    density, contrast, brightness = (_beside(pixels, change[:, column]) for column in range(3))
    light = 256 * math.pow((pixels + 1.0) / 256, density) - 1  # exp(-density * factor)
    mean = level = fn.reductions.mean(light, axes=(0, 1))
    if standardize:
        spread = fn.reductions.std_dev(light, mean, axes=(0, 1)) + LEAST_SPREAD
        level, spreads = (
            types.Constant(np.array(values, np.float32), device=pixels.device) for values in (LEVELS, SPREADS)
        )
        contrast = contrast * spreads / spread
    return fn.reshape(fn.cast((light - mean) * contrast + level + brightness, dtype=types.UINT8), layout="HWC")


def blur(pixels: Node, sigma: Node, size: int, *, compiled: bool) -> Node:
    """Blur images of `size` pixels by a Gaussian of `sigma` pixels, a row (1,) each; 0 leaves an image as it is."""
    from nvidia.dali import fn, math, types

    from hemafast import kernels

    if compiled:
        return fn.reshape(kernels.operator(kernels.blur, size)(pixels, sigma), layout="HWC")
    window = fn.cast(2 * math.ceil(REACH * sigma) + 1, dtype=types.INT32)  # a window of 1 changes nothing
    return fn.gaussian_blur(pixels, sigma=sigma, window_size=window)


def _beside(pixels: Node, drawn: Node) -> Node:
    """What was drawn, on the device of the pixels."""
    return drawn.gpu() if pixels.device == "gpu" else drawn


def erase(pixels: Node, box: Node) -> Node:
    """Blank the box (top, left, bottom, right) of each image."""
    from nvidia.dali import fn

    start = box[0:2]
    return fn.erase(pixels, anchor=start, shape=box[2:4] - start, axis_names="HW", fill_value=ERASED)
