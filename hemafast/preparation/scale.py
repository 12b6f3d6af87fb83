"""Estimate micrometres per pixel from the nuclei of white cells, and from red cells where whole ones are seen.

Both have nearly the same median size in every laboratory, and how large they are in pixels tells how many micrometres a
pixel has. The classes in a set move the median nucleus, and leave red cells alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from hemafast.config import STRICT
from hemafast.preparation.images.depth import Ranges
from hemafast.preparation.images.image_checks import MIN_SIDE, Pixels, decode_reference, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.nuclei import nucleus_diameter
from hemafast.preparation.red_cells import red_cell_diameters
from hemafast.preparation.threads import Pool, batches
from hemafast.words import counted, listed

SAMPLE = 300
"""Images that are looked at."""
METHOD = 2
"""Version of the estimate. Raise it when the same images would give another one."""

_NUCLEUS = 9.7  # um: median diameter in Acevedo_20 (9.8) and Matek_19 (9.7), as `nucleus_diameter` finds it
_FEWEST = 5  # nuclei
_LEAST_FOUND = 1 / 3  # share of the images with a nucleus
_FEWEST_OF_SIZE = 20  # nuclei of images of one size, to have a scale of their own
_SMALLEST = 8  # px: smaller nuclei are no measure
_MIX = 0.15  # by which the classes in a set move its median (natural logarithm)
_SPREAD = 0.25  # standard deviation of single nuclei (natural logarithm)
_ONE_CLASS = 1.5  # by which the median nucleus of one class differs from _NUCLEUS at most, as a factor
_LABORATORIES = 1.96 * 0.06  # half a 95 % interval: nuclei of one class differ by 6 % between laboratories
_SPREAD_IN_CLASS = 0.15  # standard deviation of single nuclei about their class (natural logarithm)
_SURE = 0.5  # probability of its class with which a cell counts as known
_RED_CELL = 7.1  # um: median of whole ones in Acevedo_20 (7.3) and Matek_19 (7.0), as `red_cell_diameters` finds them
_FEWEST_RED = 10  # red cells
_RED_FROM, _RED_TO = 0.4, 1.4  # diameter of a red cell in median nuclei: specks are smaller, other cells larger
_RED_ALIKE = 0.2  # distance between the quartiles of red cells, relative to their median, at most
_SPREAD_OF_RED = 0.12  # standard deviation of single red cells (natural logarithm)
_OF_MEDIAN = 1.96 * math.sqrt(math.pi / 2)  # half a 95 % interval of a median, in standard errors of a mean
_BATCH = 64  # images in memory at once
_KEPT_PIXELS = 10**6  # of an image: 150 times as many fit the memory


@dataclass(frozen=True, slots=True)
class ScaleEstimate:
    """What a set of images says about its scale."""

    __pydantic_config__ = STRICT

    um_per_pixel: float | None
    """None if it cannot be told."""
    low: float | None
    """Ends of the interval that holds the scale in about 95 % of mixed sets of cells; None without an estimate."""
    high: float | None
    nuclei: int
    """Images in which a nucleus was found."""
    images: int
    """Images that were looked at."""
    by_side: Mapping[int, float] = field(default_factory=dict)
    """By shorter side in px: the scale of the images of this size, where sizes differ in scale; else empty."""
    red_cells: int = 0
    """Whole red cells that had a part in it."""
    by_red_cells: float | None = None
    """The scale that they alone say."""

    def words(self) -> str:
        """The estimate in a sentence's middle, or why there is none."""
        if self.um_per_pixel is None:
            return f"cannot be estimated: a nucleus was found in {self.nuclei} of {counted(self.images, 'image')}"
        between = f"{self.low:.3g} to {self.high:.3g}"
        return f"about {self.um_per_pixel:.3g} um/px ({between}), by {listed(self._measured())}"

    def _measured(self) -> list[str]:
        red = [counted(self.red_cells, "red cell")] if self.red_cells else []
        return [f"the nuclei of {counted(self.nuclei, 'cell')}", *red]

    def holds(self, um_per_pixel: float) -> bool:
        """Whether a scale lies within the interval; True without an estimate, which contradicts nothing."""
        return self.low is None or self.high is None or self.low <= um_per_pixel <= self.high


_Estimate = TypeVar("_Estimate", bound=ScaleEstimate)


@dataclass(frozen=True, slots=True)
class ClassedEstimate(ScaleEstimate):
    """An estimate that predicted classes had a part in."""

    classed: int = 0
    """Cells whose nuclei were compared with those of their predicted classes."""

    def _measured(self) -> list[str]:
        return [*ScaleEstimate._measured(self), f"the predicted classes of {self.classed}"]


def estimate_scale(images: Iterable[Pixels | None]) -> ScaleEstimate:
    """Estimate the scale of images of one microscope and camera, without any label.

    The median nucleus of a set is taken to have 9.7 um. The interval allows 15 % for the classes in the set, and more
    the fewer nuclei there are: from the estimate divided by 1.16 to the estimate times 1.16 for thousands, 1.21 for 30,
    1.36 for 5. Sets of one class may be off by half. Fewer than 5 nuclei, or nuclei in less than a third of the images,
    give no estimate.

    Whole red cells are taken to have 7.1 um, if 10 or more are seen that are alike. The estimate is then the mean of
    both (of logarithms, by the inverse of their variances), and its interval is narrower.

    Args:
        images: uint8 (height, width, 3) of any sizes; None for one that cannot be read. A few hundred are enough.

    Returns:
        The estimate. Where images of several sizes differ in scale by more than their classes explain, it has the scale
        of each size too.
    """
    return estimate_from([measure(one) for one in images if one is not None])


@dataclass(slots=True)
class Encoded:
    """One image to measure, and its nucleus once it is measured."""

    data: object
    """Bytes of a file, or uint8 (height, width, 3). Anything else is why it could not be read."""
    name: str
    ranges: Ranges
    """What values of more than 8 bits become."""
    min_side: int = MIN_SIDE
    keep: bool = False
    """Whether its pixels are wanted, unless it is very large."""
    measured: Measured | None = None
    """None if it cannot be read."""


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """An image whose nucleus was looked for."""

    side: int
    """Shorter side in px."""
    nucleus: float | None
    """Diameter in px; None if none was found."""
    red_cells: Sequence[float] = ()
    """Diameters in px of what may be whole red cells."""
    pixels: Pixels | None = None
    """uint8 (height, width, 3), if they are kept."""


def measure(pixels: Pixels, *, keep: bool = False) -> Measured:
    """The sizes of what `pixels`, uint8 (height, width, 3), show; and the pixels themselves, if they are to be kept."""
    side, kept = min(pixels.shape[:2]), pixels if keep else None
    return Measured(side, nucleus_diameter(pixels), red_cell_diameters(pixels), kept)


def estimate_encoded(images: Iterable[Encoded], threads: int) -> ScaleEstimate:
    """As `estimate_scale`, of files; those that cannot be read are passed over. Call it within `strict_decoders`."""
    return estimate_from(measure_encoded(images, threads))


def measure_encoded(images: Iterable[Encoded], threads: int) -> list[Measured]:
    """Measure the nuclei of files; those that cannot be read are left out. Call it within `strict_decoders`."""
    found: list[Measured] = []
    with Pool(threads) as pool:
        for batch in batches(images, _BATCH, lambda one: len(one.data) if isinstance(one.data, bytes) else 0):
            pool.each(_measure, batch)
            found += [one.measured for one in batch if one.measured]
    return found


def _measure(image: Encoded) -> None:
    try:
        pixels = _pixels_of(image)
    except UnreadableImageError:
        return
    if pixels is not None:
        image.measured = measure(pixels, keep=image.keep and pixels.shape[0] * pixels.shape[1] <= _KEPT_PIXELS)


def _pixels_of(image: Encoded) -> Pixels | None:
    if not isinstance(image.data, bytes):
        return image.data if isinstance(image.data, np.ndarray) else None
    header, kept = verify_image(image.data, image.name, image.ranges, image.min_side)
    return decode_reference(kept) if header.reference is None else header.reference


def estimate_from(images: Sequence[Measured]) -> ScaleEstimate:
    """The estimate from what was measured of each image."""
    found = [(one.side, one.nucleus) for one in images if one.nucleus is not None]
    diameters = [diameter for _, diameter in found]
    enough = len(found) >= _FEWEST and len(found) >= _LEAST_FOUND * len(images)
    if not enough or float(np.median(diameters)) < _SMALLEST:
        return ScaleEstimate(None, None, None, len(found), len(images))
    scale, width = _scale_of(diameters), math.exp(_half_width(len(found)))
    by_nuclei = ScaleEstimate(scale, scale / width, scale * width, len(found), len(images), _by_side(found))
    if by_nuclei.by_side:  # of which red cells would be a mixture
        return by_nuclei
    red = _alike([one for image in images for one in image.red_cells], float(np.median(diameters)))
    by_red_cells = round(_RED_CELL / float(np.median(red)), 5) if red else None
    return _with_red_cells(replace(by_nuclei, red_cells=len(red), by_red_cells=by_red_cells))


def _alike(diameters: Sequence[float], nucleus: float) -> list[float]:
    """Those of the size of red cells beside such a median nucleus in px; none if they are few, or of many sizes."""
    red = [one for one in diameters if _RED_FROM * nucleus <= one <= _RED_TO * nucleus]
    if len(red) < _FEWEST_RED:
        return []
    low, middle, high = np.quantile(red, [0.25, 0.5, 0.75])
    return red if high - low <= _RED_ALIKE * middle else []


def _with_red_cells(estimate: _Estimate) -> _Estimate:
    """The mean of an estimate by nuclei and of what red cells say, by the inverse of their variances."""
    if estimate.by_red_cells is None:
        return estimate
    assert estimate.um_per_pixel is not None and estimate.high is not None
    widths = [
        math.log(estimate.high / estimate.um_per_pixel),
        math.hypot(_LABORATORIES, _OF_MEDIAN * _SPREAD_OF_RED / math.sqrt(estimate.red_cells)),
    ]
    weights = np.power(widths, -2.0)
    logarithms = np.log([estimate.um_per_pixel, estimate.by_red_cells])
    scale = round(math.exp(float(np.average(logarithms, weights=weights))), 5)
    width = math.exp(float(weights.sum()) ** -0.5)
    return replace(estimate, um_per_pixel=scale, low=scale / width, high=scale * width)


def factor_of(
    diameters: npt.NDArray[np.float64], probabilities: npt.NDArray[np.float64], sizes: Sequence[float | None]
) -> float | None:
    """By what a scale must be multiplied so that nuclei have the sizes that their predicted classes have.

    Args:
        diameters: (n,), in um at that scale.
        probabilities: (n, classes). A cell counts as all classes by their probability, so that doubt changes little.
        sizes: by class, the median diameter of its nuclei in um; None where it is not known.

    Returns:
        The median over the cells, at most 1.5 and at least its inverse: no set of one class is further off. None if
        fewer than 5 cells, or less than a third of them, have a class of known size with a probability of 0.5 or more.
    """
    known = np.array([size is not None for size in sizes])
    logarithms = np.log([size for size in sizes if size is not None])
    shares = np.nan_to_num(probabilities[:, known])
    if not known.any() or (shares.max(axis=1) >= _SURE).sum() < max(_FEWEST, _LEAST_FOUND * len(shares)):
        return None
    some = shares.sum(axis=1) >= _SURE
    expected = shares[some] @ logarithms / shares[some].sum(axis=1)
    factor = math.exp(float(np.median(expected - np.log(diameters[some]))))
    return min(max(factor, 1 / _ONE_CLASS), _ONE_CLASS)


def with_classes(estimate: ScaleEstimate, factor: float, cells: int) -> ScaleEstimate:
    """The estimate times what `factor_of` says by the classes of `cells` cells.

    The interval allows 12 % instead of 15: with the classes known, laboratories differ by 6 %. To this comes what the
    number of cells allows: the estimate times or divided by 1.13 for 150, 1.15 for 30, 1.22 for 5. What red
    cells say has the same part as in the first estimate.
    """
    assert estimate.um_per_pixel is not None
    scale = round(estimate.um_per_pixel * factor, 5)
    width = math.exp(math.hypot(_LABORATORIES, _OF_MEDIAN * _SPREAD_IN_CLASS / math.sqrt(cells)))
    by_side = {side: round(one * factor, 5) for side, one in estimate.by_side.items()}
    told = {"um_per_pixel": scale, "low": scale / width, "high": scale * width, "by_side": by_side, "classed": cells}
    return _with_red_cells(ClassedEstimate(**asdict(estimate) | told))


def _scale_of(diameters: Sequence[float]) -> float:
    return round(_NUCLEUS / float(np.median(diameters)), 5)


def _half_width(nuclei: int) -> float:
    """Of the 95 % interval of the natural logarithm of a scale."""
    return math.hypot(_MIX, _OF_MEDIAN * _SPREAD / math.sqrt(nuclei))


def _by_side(found: Sequence[tuple[int, float]]) -> dict[int, float]:
    """The scale of each size that has enough nuclei, if the intervals of two sizes do not meet."""
    sizes: dict[int, list[float]] = defaultdict(list)
    for side, diameter in found:
        sizes[side].append(diameter)
    usual = {side: own for side, own in sorted(sizes.items()) if len(own) >= _FEWEST_OF_SIZE}
    scales = {side: _scale_of(own) for side, own in usual.items()}
    if not scales:
        return {}
    lows = [math.log(scales[side]) - _half_width(len(own)) for side, own in usual.items()]
    highs = [math.log(scales[side]) + _half_width(len(own)) for side, own in usual.items()]
    return scales if max(lows) > min(highs) else {}
