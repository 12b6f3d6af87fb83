"""Estimate micrometres per pixel from the nuclei of white cells.

Nuclei of white cells have nearly the same median size in every laboratory, and how large they are in pixels tells how
many micrometres a pixel has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt

from hemafast.config import STRICT
from hemafast.preparation.images.depth import Ranges
from hemafast.preparation.images.image_checks import MIN_SIDE, Pixels, decode_reference, verify_image
from hemafast.preparation.images.kinds import UnreadableImageError
from hemafast.preparation.nuclei import nucleus_diameter
from hemafast.preparation.threads import Pool, batches
from hemafast.words import counted

SAMPLE = 300
"""Images that are looked at."""
METHOD = 1
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

    def words(self) -> str:
        """The estimate in a sentence's middle, or why there is none."""
        if self.um_per_pixel is None:
            return f"cannot be estimated: a nucleus was found in {self.nuclei} of {counted(self.images, 'image')}"
        between = f"{self.low:.3g} to {self.high:.3g}"
        return f"about {self.um_per_pixel:.3g} um/px ({between}), by the nuclei of {counted(self.nuclei, 'cell')}"

    def holds(self, um_per_pixel: float) -> bool:
        """Whether a scale lies within the interval; True without an estimate, which contradicts nothing."""
        return self.low is None or self.high is None or self.low <= um_per_pixel <= self.high


@dataclass(frozen=True, slots=True)
class ClassedEstimate(ScaleEstimate):
    """An estimate that predicted classes had a part in."""

    classed: int = 0
    """Cells whose nuclei were compared with those of their predicted classes."""

    def words(self) -> str:
        """As of the estimate without classes."""
        return f"{ScaleEstimate.words(self)} and the predicted classes of {self.classed}"


def estimate_scale(images: Iterable[Pixels | None]) -> ScaleEstimate:
    """Estimate the scale of images of one microscope and camera, without any label.

    The median nucleus of a set is taken to have 9.7 um. The interval allows 15 % for the classes in the set, and more
    the fewer nuclei there are: from the estimate divided by 1.16 to the estimate times 1.16 for thousands, 1.21 for 30,
    1.36 for 5. Sets of one class may be off by half. Fewer than 5 nuclei, or nuclei in less than a third of the images,
    give no estimate.

    Args:
        images: uint8 (height, width, 3) of any sizes; None for one that cannot be read. A few hundred are enough.

    Returns:
        The estimate. Where images of several sizes differ in scale by more than their classes explain, it has the scale
        of each size too.
    """
    return estimate_from([(min(one.shape[:2]), nucleus_diameter(one)) for one in images if one is not None])


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
    pixels: Pixels | None
    """uint8 (height, width, 3), if they are kept."""


def estimate_encoded(images: Iterable[Encoded], threads: int) -> ScaleEstimate:
    """As `estimate_scale`, of files; those that cannot be read are passed over. Call it within `strict_decoders`."""
    return estimate_from([(one.side, one.nucleus) for one in measure_encoded(images, threads)])


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
        kept = pixels if image.keep and pixels.shape[0] * pixels.shape[1] <= _KEPT_PIXELS else None
        image.measured = Measured(min(pixels.shape[:2]), nucleus_diameter(pixels), kept)


def _pixels_of(image: Encoded) -> Pixels | None:
    if not isinstance(image.data, bytes):
        return image.data if isinstance(image.data, np.ndarray) else None
    header, kept = verify_image(image.data, image.name, image.ranges, image.min_side)
    return decode_reference(kept) if header.reference is None else header.reference


def estimate_from(nuclei: Sequence[tuple[int, float | None]]) -> ScaleEstimate:
    """The estimate from the shorter side of each image and the diameter of its nucleus in px, None without one."""
    found = [(side, diameter) for side, diameter in nuclei if diameter is not None]
    diameters = [diameter for _, diameter in found]
    enough = len(found) >= _FEWEST and len(found) >= _LEAST_FOUND * len(nuclei)
    if not enough or float(np.median(diameters)) < _SMALLEST:
        return ScaleEstimate(None, None, None, len(found), len(nuclei))
    scale, width = _scale_of(diameters), math.exp(_half_width(len(found)))
    return ScaleEstimate(scale, scale / width, scale * width, len(found), len(nuclei), _by_side(found))


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
    number of cells allows: the estimate times or divided by 1.13 for 150, 1.15 for 30, 1.22 for 5.
    """
    assert estimate.um_per_pixel is not None
    scale = round(estimate.um_per_pixel * factor, 5)
    width = math.exp(math.hypot(_LABORATORIES, _OF_MEDIAN * _SPREAD_IN_CLASS / math.sqrt(cells)))
    by_side = {side: round(one * factor, 5) for side, one in estimate.by_side.items()}
    told = {"um_per_pixel": scale, "low": scale / width, "high": scale * width, "by_side": by_side, "classed": cells}
    return ClassedEstimate(**asdict(estimate) | told)


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
