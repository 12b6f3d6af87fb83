"""Views out of squares that lie in the memory of a device, by torch alone: what the input graph does, without DALI.

The operations are those of `operators`, in the same order, with the same rounding to levels after each. They take
tensors of fixed shape and never wait for the device, so that they can be compiled and captured in a CUDA graph. Tests
compare them with the graph on a CPU. No operation of RandAugment is here.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from hemafast.data.augment import Policy
from hemafast.data.operators import ERASED
from hemafast.pixel_constants import DENSITY_STEPS, LEAST_SPREAD, LEVELS, REACH, SOFT, SPREADS, WHITE


def gather(squares: Tensor, rows: Tensor, views: Mapping[str, Tensor], policy: Policy, size: int) -> Tensor:
    """The views of some squares.

    Args:
        squares: uint8 (images, side, side, 3).
        rows: int64 (n,), places in `squares`.
        views: What was drawn: (n, ...) for each name of `GraphShape.inputs`, as in `augment.Views`.
        policy: What they were drawn under.
        size: Side of the views in pixels.

    Returns:
        uint8 (n, 3, size, size) in channels_last.
    """
    if "window" in views:
        pixels, rows = cut_window(squares[rows], views["window"], size), torch.arange(len(rows), device=rows.device)
    else:
        pixels = squares
    pixels = turn(pixels, rows, views["turn"], size) if "turn" in views else pixels[rows]
    if "background" in views:
        pixels = cover(pixels, views["background"])
    if "stain" in views:
        pixels = stain(pixels, views["stain"])
    if "recolour" in views:
        pixels = recolour(pixels, views["recolour"], standardize=policy.standardize)
    if "blur" in views:
        pixels = blur(pixels, views["blur"][:, 0])
    if "erase" in views:
        pixels = erase(pixels, views["erase"])
    return pixels.contiguous().permute(0, 3, 1, 2)


def cut_window(pixels: Tensor, window: Tensor, size: int) -> Tensor:
    """Scale the window (top, left, bottom, right) of each image to (n, size, size, 3), as `kernels.cut_window`."""
    rows, columns = (
        _triangles(window[:, first], window[:, first + 2], size, pixels.shape[1 + first]) for first in (0, 1)
    )
    return _levels(_mixed(pixels.float(), rows, columns))


def turn(pixels: Tensor, rows: Tensor, matrix: Tensor, size: int) -> Tensor:
    """The nearest pixels of the images `rows` under each matrix (2, 3), (n, size, size, 3); black outside."""
    height, width = pixels.shape[1:3]
    place = torch.arange(size, device=pixels.device) + 0.5
    x, y = (
        (matrix[:, axis, 0, None, None] * place + matrix[:, axis, 1, None, None] * place[:, None])
        + matrix[:, axis, 2, None, None]
        for axis in (0, 1)
    )
    column, row = x.floor().long(), y.floor().long()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen = pixels[rows[:, None, None], row.clamp(0, height - 1), column.clamp(0, width - 1)]
    return torch.where(inside[..., None], seen, 0)


def cover(pixels: Tensor, background: Tensor) -> Tensor:
    """One colour outside a circle about the centre of each image; rows as in `operators.cover`."""
    size = pixels.shape[1]
    radius, white, mean = (background[:, column, None, None, None] for column in range(3))
    values = pixels.float()
    colour = white * _white_point(pixels) + mean * values.mean(dim=(1, 2), keepdim=True) + background[:, None, None, 3:]
    squares = (torch.arange(size, device=pixels.device) + 0.5 - size / 2) ** 2
    distance = (squares + squares[:, None]).sqrt()[None, :, :, None]
    kept = (1 - (distance - radius) / (SOFT * size / 2)).clamp(0, 1)
    return _levels(colour + kept * (values - colour))


def stain(pixels: Tensor, matrix: Tensor) -> Tensor:
    """Map the natural optical densities (red, green, blue, 1) of each image by a matrix (3, 4)."""
    density = -((pixels.float() + 1) / 256).log()
    changed = torch.einsum("nhwc,ndc->nhwd", density, matrix[:, :, :3]) + matrix[:, None, None, :, 3]
    steps = (changed * DENSITY_STEPS).round().clamp(0, 2**16 - 1)
    return _levels(256 * (-steps / DENSITY_STEPS).exp() - 1)


def recolour(pixels: Tensor, change: Tensor, *, standardize: bool) -> Tensor:
    """Change each channel of each image on its own; `change` (n, 3, 3) as in `operators.recolour`."""
    density, contrast, brightness = (change[:, None, None, :, column] for column in range(3))
    light = 256 * ((pixels.float() + 1) / 256) ** density - 1
    mean = level = light.mean(dim=(1, 2), keepdim=True)
    if standardize:
        spread = light.std(dim=(1, 2), keepdim=True, correction=0) + LEAST_SPREAD
        level, spreads = _row(light, LEVELS), _row(light, SPREADS)
        contrast = contrast * spreads / spread
    return _levels((light - mean) * contrast + level + brightness)


def blur(pixels: Tensor, sigma: Tensor) -> Tensor:
    """Blur each image by a Gaussian of `sigma` (n,) pixels, mirrored at the edges; 0 leaves it as it is."""
    size = pixels.shape[1]
    place = torch.arange(size, device=pixels.device)
    wide, reach = sigma[:, None, None].clamp(min=1e-3), (REACH * sigma[:, None, None]).ceil()

    def weights(distance: Tensor) -> Tensor:
        return torch.where(distance.abs() <= reach, (-0.5 * (distance / wide) ** 2).exp(), 0)

    source, target = place, place[:, None]
    # A pixel counts again for its mirror images beyond either edge; the pixels of the edges have none.
    mirrored = torch.where(source > 0, weights(-source - target), 0)
    mirrored = mirrored + torch.where(source < size - 1, weights(2 * (size - 1) - source - target), 0)
    taps = weights(source - target) + mirrored
    taps = taps / taps.sum(dim=2, keepdim=True)
    return _levels(_mixed(pixels.float(), taps, taps))


def erase(pixels: Tensor, box: Tensor) -> Tensor:
    """Blank the box (top, left, bottom, right) of each image."""
    place = torch.arange(pixels.shape[1], device=pixels.device)
    rows, columns = (
        (place >= box[:, first, None].round()) & (place < box[:, first + 2, None].round()) for first in (0, 1)
    )
    blank = rows[:, :, None] & columns[:, None]
    return torch.where(blank[..., None], _row(pixels, ERASED), pixels)


def _triangles(start: Tensor, end: Tensor, size: int, limit: int) -> Tensor:
    """(n, size, limit): weights of the pixels along one axis for each output, as `kernels._taps`."""
    start, scale = start[:, None], (end - start)[:, None] / size
    centre = (start + (torch.arange(size, device=start.device) + 0.5) * scale).clamp(0.5, limit - 0.5)
    pixel = torch.arange(limit, device=start.device) + 0.5
    weights = (1 - (pixel - centre[:, :, None]).abs() / scale.clamp(min=1)[:, :, None]).clamp(min=0)
    return weights / weights.sum(dim=2, keepdim=True)


def _mixed(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Weighted sums of whole rows (n, size, height), then of columns (n, size, width), of (n, height, width, 3)."""
    images, height, width, channels = pixels.shape
    lines = rows @ pixels.reshape(images, height, width * channels)
    lines = lines.reshape(images, -1, width, channels)
    return torch.einsum("nxw,nywc->nyxc", columns, lines)


def _white_point(pixels: Tensor) -> Tensor:
    """(n, 1, 1, 3): found bit by bit, which needs no sorting."""
    point = pixels.new_zeros((len(pixels), 1, 1, 3), dtype=torch.int32)
    wanted = WHITE * pixels.shape[1] * pixels.shape[2]
    for bit in (128, 64, 32, 16, 8, 4, 2, 1):
        below = (pixels < point + bit).sum(dim=(1, 2), keepdim=True)
        point = point + bit * (below < wanted)
    return point


def _row(like: Tensor, values: tuple[float, ...]) -> Tensor:
    """These values as a tensor beside `like`; filled there, because a copy from the host cannot be captured."""
    return torch.cat([like.new_full((1,), value) for value in values])


def _levels(values: Tensor) -> Tensor:
    """The nearest levels, 0 to 255."""
    return (values.clamp(0, 255) + 0.5).to(torch.uint8)
