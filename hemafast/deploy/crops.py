"""Which part of each image the model sees, so that cells have the scale it was trained on."""

from __future__ import annotations

import logging
import posixpath
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from hemafast.deploy.choices import UmPerPixel
from hemafast.deploy.inputs import Image, Some
from hemafast.engine.checkpoint import View
from hemafast.errors import HemafastError
from hemafast.preparation.scale import ScaleEstimate
from hemafast.preparation.sources.containers import archive_suffix
from hemafast.words import counted

_SMALLEST = 16  # px

logger = logging.getLogger("hemafast")


@dataclass(frozen=True, slots=True)
class Crops:
    """The centre square that is cut out of each image."""

    sides: npt.NDArray[np.int64]
    """(images,): side in pixels of the image, at most its shorter side; 0 for the largest square."""
    scales: tuple[str, ...] = ()
    """Which scale is used for how many images, one sentence per domain."""
    estimates: tuple[str, ...] = ()
    """What was estimated and why it is doubtful, one sentence per set."""
    doubts: tuple[str, ...] = ()
    """Why a scale that was given is doubtful."""
    unknown: int = 0
    """Images of unknown scale, which are seen whole."""
    sets: Sequence[str | None] = ()
    """The set of each image whose scale was estimated; empty without any."""
    by_side: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    """By set and shorter side in px: sides of the crops of image sizes that have a scale of their own."""

    def asked(self, rows: Sequence[int], shorter: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The sides for the images `rows`, whose shorter sides in px are `shorter`; as `sides`."""
        if not any(self.by_side.values()):
            return self.sides[rows]
        own = [self.by_side.get(self.sets[row] or "", {}) for row in rows]
        sides = [one.get(int(side), int(self.sides[row])) for one, row, side in zip(own, rows, shorter, strict=True)]
        return np.array(sides, dtype=np.int64)


def choose_crops(
    images: Sequence[Image],
    view: View,
    um_per_pixel: UmPerPixel,
    estimate: Callable[[Sequence[Image]], ScaleEstimate],
) -> Crops:
    """The part of each image that shows the model's field of view.

    The scale is `um_per_pixel`, else that of the domain that the innermost folder or zip around the image is named
    after, else what `estimate` makes of all such images that were named together. Raises HemafastError if the field of
    view is only a few pixels wide.
    """
    field_of_view, whole = view.field_of_view, np.zeros(len(images), dtype=np.int64)
    if field_of_view is None or (um_per_pixel in (None, "unknown") and not view.scales):
        return Crops(whole)
    if um_per_pixel == "unknown":
        return Crops(whole, unknown=len(images))
    if um_per_pixel is not None:
        far = view.far_from_training(um_per_pixel)
        doubts = (f"um_per_pixel = {um_per_pixel:g}: {far}",) if far else ()
        return Crops(np.full(len(images), _side(field_of_view, um_per_pixel), dtype=np.int64), doubts=doubts)
    sides = {domain: _side(field_of_view, scale) if scale else 0 for domain, scale in view.um_per_pixel.items()}
    domains = domains_of(images, frozenset(sides))
    counts = Counter(domain for domain in domains if domain)
    used = {name: f"{scale:g} um/px" if scale else "seen whole" for name, scale in view.um_per_pixel.items()}
    known = Crops(
        sides=np.array([sides[domain] if domain else 0 for domain in domains], dtype=np.int64),
        scales=tuple(
            f"{counted(count, 'image')} of {name}: {used[name]}, as in training" for name, count in counts.items()
        ),
    )
    sets = tuple(None if domain else image.named for image, domain in zip(images, domains, strict=True))
    return _estimated(known, images, sets, estimate, field_of_view, view)


def _estimated(
    known: Crops,
    images: Sequence[Image],
    sets: Sequence[str | None],
    estimate: Callable[[Sequence[Image]], ScaleEstimate],
    field_of_view: float,
    view: View,
) -> Crops:
    """The same crops with those of the images in `sets`, by what is estimated of each set."""
    rows: dict[str, array[int]] = defaultdict(lambda: array("q"))
    for row, name in enumerate(sets):
        if name is not None:
            rows[name].append(row)
    sides, said, unknown, by_side = known.sides.copy(), [], 0, {}
    for name, every in rows.items():
        own = np.array(every, dtype=np.int64)
        found = estimate(Some(images, own))
        if found.um_per_pixel is None:
            unknown += len(own)
            continue
        sides[own] = _side(field_of_view, found.um_per_pixel)
        by_side[name] = {side: _side(field_of_view, scale) for side, scale in found.by_side.items()}
        said.append(f"{_called(name, len(own))}: {found.words()}{_doubts(found, view)}")
    return replace(known, sides=sides, estimates=tuple(said), unknown=unknown, sets=sets, by_side=by_side)


def _called(named: str, images: int) -> str:
    return counted(images, "image") + (f" of {named}" if named else "")


def _doubts(found: ScaleEstimate, view: View) -> str:
    """What is doubtful about an estimate, for the end of its sentence."""
    assert found.um_per_pixel is not None
    doubts = ""
    if found.by_side:
        listed = ", ".join(f"{side} px: {scale:.3g} um/px" for side, scale in found.by_side.items())
        doubts += f"; sizes differ in scale, and each is cut by its own ({listed})"
    far = view.far_from_training(found.um_per_pixel)
    return f"{doubts}; {far}" if far else doubts


def domains_of(images: Sequence[Image], names: frozenset[str]) -> list[str | None]:
    """The one of `names` that the innermost folder or archive around each image has; None without, and for arrays."""
    return [_domain_of(posixpath.dirname(image.name), names) if image.array is None else None for image in images]


def log_scales(crops: Sequence[Crops]) -> None:
    """Log which scale is used for which images, once for all models, and how many images have no known scale."""
    for said in sorted({said for one in crops for said in one.scales}):
        logger.info(said)
    for said in sorted({said for one in crops for said in one.doubts}):
        logger.warning(said)
    for said in sorted({said for one in crops for said in one.estimates}):
        logger.warning("%s; give um_per_pixel (--um-per-pixel) if you know it", said)
    if unknown := max(one.unknown for one in crops):
        logger.warning(
            "%s of unknown scale and seen whole, unlike in training: give um_per_pixel (--um-per-pixel) "
            "or more images, for an estimate takes 5 nuclei, in a third of them",
            counted(unknown, "image is", "images are"),
        )


def _side(field_of_view: float, um_per_pixel: float) -> int:
    side = round(field_of_view / um_per_pixel)
    if side < _SMALLEST:
        raise HemafastError(
            f"{field_of_view:g} um are {side} pixels at {um_per_pixel:g} um/px: too few to show a cell.",
            "Check um_per_pixel (--um-per-pixel): it is micrometres per pixel.",
        )
    return side


@lru_cache(maxsize=1024)  # images of one folder follow each other
def _domain_of(folder: str, domains: frozenset[str]) -> str | None:
    """The innermost folder or archive (without its suffix) on a path whose name is a domain."""
    for part in reversed(posixpath.abspath(folder).split("/")):
        stem = part[: len(part) - len(archive_suffix(part))]
        if stem in domains:
            return stem
    return None
