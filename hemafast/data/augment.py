"""The augmentation policies, and the random draws for each image.

A policy is data: ranges to draw from. numpy draws everything, and the graph only applies it. So the images of a batch
and their views depend on (seed, epoch, position) alone: they are the same on a CPU and a GPU, from packed pixels and
from files, with any number of threads, and after a restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from hemafast.config import Symmetry
from hemafast.data import geometry
from hemafast.data.geometry import Boxes
from hemafast.errors import HemafastError


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Ranges of the random changes to an image. A change at its default does not happen and takes no time."""

    crop_area: tuple[float, float] | None = None
    """Smallest and largest share of the square to crop and scale to the view; None for a window of fixed size."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Smallest and largest width over height of the crop."""
    shift: bool = False
    """Whether the window of fixed size lies anywhere in the square instead of in its centre."""
    zoom: float = 0.0
    """Share by which the side of a window of fixed size may grow or shrink, within the square."""
    symmetry: Symmetry = "none"
    """ "mirror" swaps left and right half of the time; "eight" draws one of the eight flips and quarter turns."""
    rotation: float = 0.0
    """Largest rotation in degrees, in both directions."""
    randaugment_ops: int = 0
    """Operations of RandAugment per image."""
    randaugment_magnitude: int = 9
    """Magnitude of these operations, 0 to 30."""
    stain: float = 0.0
    """How much the absorption of each stain varies: as a share, and as an offset in natural optical density."""
    crosstalk: float = 0.0
    """Largest share of a channel's optical density that another channel takes or loses, as with other dyes."""
    grey: float = 0.0
    """Share of the images in which every channel has the mean optical density of all."""
    background: float = 0.0
    """Share of the images with one colour outside a circle about the centre."""
    standardize: bool = False
    """Whether each channel of an image gets the mean LEVELS and the spread SPREADS, before contrast and brightness."""
    density: float = 0.0
    """Largest share by which the optical density grows or shrinks; half of it for each channel on its own."""
    contrast: float = 0.0
    """Largest change of the spread of each channel about its mean, as the logarithm of a factor."""
    brightness: float = 0.0
    """Largest shift of each channel, as a share of the full range."""
    blur: float = 0.0
    """Largest standard deviation, in pixels of the view, of the Gaussian that blurs half of the images."""
    erase: float = 0.0
    """Share of the images with a blank rectangle."""

    def to_plain(self) -> dict[str, Any]:
        """The fields as plain data."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    def __post_init__(self) -> None:
        if self.zoom and self.crop_area is not None:
            raise HemafastError("zoom has no effect with crop_area.", "Leave out one of them.")

    @property
    def sees_fixed_windows(self) -> bool:
        """Whether all windows have the same side, in whole pixels."""
        return self.crop_area is None and not self.zoom

    @property
    def moves_whole_pixels(self) -> bool:
        """Whether turning moves pixels to whole pixels."""
        return not self.rotation and not self.randaugment_ops

    @property
    def turns(self) -> bool:
        """Whether images are turned."""
        return self.symmetry != "none" or not self.moves_whole_pixels

    @property
    def mixes_channels(self) -> bool:
        """Whether the optical densities of the channels are mixed."""
        return bool(self.stain or self.crosstalk or self.grey)

    @property
    def recolours(self) -> bool:
        """Whether each channel is changed on its own."""
        return bool(self.standardize or self.density or self.contrast or self.brightness)


POLICIES = {
    "seed": Policy(crop_area=(0.08, 1.0), symmetry="mirror", rotation=10),
    "basic": Policy(shift=True, symmetry="eight"),
    "strong": Policy(crop_area=(0.08, 1.0), symmetry="mirror", randaugment_ops=2, erase=0.5),
    "lineage": Policy(shift=True, zoom=0.1, symmetry="eight", stain=0.05),
    "robust": Policy(
        shift=True,
        symmetry="eight",
        background=0.4,
        crosstalk=0.3,
        grey=0.25,
        density=0.5,
        contrast=0.5,
        brightness=0.15,
        blur=2.0,
    ),
    "none": Policy(),
}
"""The policies by name; docs/data.md shows and explains them."""


def named_policy(name: str, **changes: Any) -> Policy:
    """The policy `name` with `changes` to its fields; None changes nothing. Raises HemafastError if it is unknown."""
    if name not in POLICIES:
        raise HemafastError(f"There is no policy {name!r}.", f"Choose from: {', '.join(POLICIES)}.")
    return replace(POLICIES[name], **{field: value for field, value in changes.items() if value is not None})


def parts_of(policies: Mapping[str, Policy]) -> dict[str, Policy]:
    """Each change of each policy alone, as "POLICY: CHANGE". Raises HemafastError if they change nothing."""
    found: dict[str, Policy] = {}
    for name, policy in policies.items():
        shapes = Policy(**{shape: getattr(policy, shape) for shape in _SHAPES})
        changed = {one.name: value for one in fields(policy) if (value := getattr(policy, one.name)) != one.default}
        found |= {f"{name}: {of}": replace(shapes, **{of: changed[of]}) for of in changed if of not in _SHAPES}
    if not found:
        raise HemafastError(f"{', '.join(policies)} has no changes to show.", "Name another policy, such as lineage.")
    return found


_SHAPES = ("crop_ratio", "randaugment_magnitude")
"""Fields that only say how another change is."""

ENHANCEMENTS = (
    "as it is",
    "brightness",
    "color",
    "contrast",
    "sharpness",
    "posterize",
    "solarize",
    "auto_contrast",
    "equalize",
)
"""Colour operations of RandAugment, by the drawn index."""

_GEOMETRIC = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
RANDAUGMENT = ("as it is", *_GEOMETRIC, *ENHANCEMENTS[1:])
"""All operations of RandAugment, as in torchvision and in the paper (arXiv 1909.13719)."""
MAGNITUDES = 31
"""Number of magnitudes."""
_FULL_SHEAR, _FULL_SHIFT, _FULL_ANGLE = 0.3, 150 / 331, 30.0  # torchvision's, at the largest magnitude

# Absorption of red, green and blue by haematoxylin, eosin and a third stain (Ruifrok and Johnston 2001, "Quantification
# of histochemical staining by color deconvolution"). Giemsa's azure and eosin are close to the first two.
_STAINS: npt.NDArray[np.float64] = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_STAINS /= np.linalg.norm(_STAINS, axis=1, keepdims=True)

_ERASED_AREA, _ERASED_RATIO = (0.02, 0.33), (1 / 3.3, 1 / 0.3)  # torchvision's; its ratio is height over width

_RADIUS = (0.3, 1.0)  # of the circle that keeps its background, as shares of half the side
_WHITE_POINT, _MEAN_COLOUR = 0.5, 0.25  # shares of the new backgrounds; the others have a random colour
_BLURRED = 0.5  # share of the images


@dataclass(frozen=True, slots=True)
class Views:
    """The views of n images."""

    window: Boxes
    """(n, 4): the part of the packed square to scale to the view."""
    turn: npt.NDArray[np.float32]
    """(n, 2, 3): maps (x, y, 1) of the view to the place in the scaled window that it shows."""
    enhance: npt.NDArray[np.int32]
    """(n, operations): indices into ENHANCEMENTS, applied in order."""
    weaken: npt.NDArray[np.int32]
    """(n, operations): 1 if an enhancement with two directions weakens."""
    stain: npt.NDArray[np.float32]
    """(n, 3, 4): maps (red, green, blue, 1) in natural optical density to those of the view."""
    background: npt.NDArray[np.float32]
    """(n, 6): radius in pixels, and of the new background's colour the factor of the white point, that of the mean
    colour, and three levels to add; a radius of the side changes nothing."""
    recolour: npt.NDArray[np.float32]
    """(n, 3, 3): of each channel the factor of its optical density, the factor of its distance from the mean, and
    levels to add."""
    blur: npt.NDArray[np.float32]
    """(n, 1): standard deviation in pixels."""
    erase: Boxes
    """(n, 4): the part of the view to blank; may be empty."""

    def __getitem__(self, rows: slice | npt.NDArray[np.int64]) -> Views:
        return Views(*(getattr(self, field.name)[rows] for field in fields(self)))


def draw_views(policy: Policy, packed_size: int, image_size: int, images: int, generator: np.random.Generator) -> Views:
    """Draw views of `image_size` pixels for `images` images under `policy`; the arrays are contiguous, as DALI asks."""
    window = _draw_windows(policy, packed_size, images, generator)
    turn = geometry.about_centre(_draw_turns(policy, images, generator), image_size)
    drawn, sign = _draw_operations(policy.randaugment_ops, images, generator)
    for operation in range(policy.randaugment_ops):
        step = _geometric(drawn[:, operation], sign[:, operation], policy.randaugment_magnitude, image_size)
        turn = geometry.compose(turn, step)
    stain = _draw_stains(policy.stain, images, generator)
    erase = _draw_erased(policy.erase, image_size, images, generator)
    # All others come after these, so that runs of earlier versions continue with the same draws.
    return Views(
        window=window,
        turn=turn,
        enhance=np.maximum(drawn - len(_GEOMETRIC), 0).astype(np.int32),
        weaken=(sign < 0).astype(np.int32),
        erase=erase,
        background=_draw_backgrounds(policy.background, image_size, images, generator),
        recolour=_draw_recolouring(policy, images, generator),
        blur=_draw_blurs(policy.blur, images, generator),
        stain=np.ascontiguousarray(_with_mixtures(stain, policy, images, generator)),
    )


def _draw_windows(policy: Policy, packed_size: int, images: int, generator: np.random.Generator) -> Boxes:
    if policy.crop_area is not None:
        return geometry.random_resized_windows(packed_size, images, policy.crop_area, policy.crop_ratio, generator)
    if policy.shift or policy.zoom:
        return geometry.shifted_windows(packed_size, images, policy.zoom, generator, centred=not policy.shift)
    return geometry.centre_windows(packed_size, images)


def _draw_turns(policy: Policy, images: int, generator: np.random.Generator) -> geometry.Linear:
    chosen = np.zeros(images, np.int64)
    if policy.symmetry == "mirror":
        chosen = geometry.MIRROR * generator.integers(2, size=images)
    elif policy.symmetry == "eight":
        chosen = generator.integers(len(geometry.SYMMETRIES), size=images)
    turns: geometry.Linear = geometry.SYMMETRIES[chosen]
    if policy.rotation:
        turns = turns @ geometry.rotations(generator.uniform(-policy.rotation, policy.rotation, images))
    return turns


def _draw_operations(
    operations: int, images: int, generator: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(n, operations): indices into RANDAUGMENT, and signs."""
    if not operations:
        return np.zeros((images, 0), np.int64), np.zeros((images, 0), np.int64)
    drawn = generator.integers(len(RANDAUGMENT), size=(images, operations))
    return drawn, 2 * generator.integers(2, size=drawn.shape) - 1


def _geometric(
    drawn: npt.NDArray[np.int64], sign: npt.NDArray[np.int64], magnitude: int, side: int
) -> npt.NDArray[np.float32]:
    """(n, 2, 3) maps of the geometric operations of RandAugment; the identity for the others."""
    share = sign * magnitude / (MAGNITUDES - 1)
    amount = {name: np.where(drawn == index, share, 0.0) for index, name in enumerate(RANDAUGMENT)}
    maps = geometry.about_centre(geometry.rotations(_FULL_ANGLE * amount["rotate"]), side)
    maps[:, 0, 1] += _FULL_SHEAR * amount["shear_x"]
    maps[:, 1, 0] += _FULL_SHEAR * amount["shear_y"]
    maps[:, 0, 2] += np.trunc(_FULL_SHIFT * side * amount["translate_x"])
    maps[:, 1, 2] += np.trunc(_FULL_SHIFT * side * amount["translate_y"])
    return maps


def _draw_stains(strength: float, images: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Vary each stain by a factor and an offset in natural optical density (Tellez et al., arXiv 1902.06543)."""
    if not strength:
        return np.zeros((images, 3, 4), np.float32)
    factor = generator.uniform(1 - strength, 1 + strength, (images, 3))
    offset = generator.uniform(-strength, strength, (images, 3))
    unmix = np.linalg.inv(_STAINS)
    # For rows, density = amounts @ _STAINS; these maps act on columns, so they are transposed.
    scaled = np.einsum("cs,ns,sd->ndc", unmix, factor, _STAINS)
    return np.concatenate([scaled, (offset @ _STAINS)[:, :, None]], axis=2).astype(np.float32)


def _with_mixtures(
    stain: npt.NDArray[np.float32], policy: Policy, images: int, generator: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The maps `stain`, and after them a random mixture of the channels that leaves grey as it is."""
    if not (policy.crosstalk or policy.grey):
        return stain
    taken = generator.uniform(-policy.crosstalk, policy.crosstalk, (images, 3, 3))
    mixed = np.eye(3) + taken - taken.sum(axis=2)[:, :, None] * np.eye(3)
    mixed[generator.uniform(0, 1, images) < policy.grey] = 1 / 3
    before = stain if policy.stain else np.eye(3, 4, dtype=np.float32)
    return np.asarray(mixed @ before, np.float32)


def _draw_erased(share: float, side: int, images: int, generator: np.random.Generator) -> Boxes:
    """Rectangles as in torchvision's RandomErasing; empty if ten draws leave the image."""
    if not share:
        return np.zeros((images, 4), np.float32)
    boxes, fits = geometry.random_boxes(side, images, _ERASED_AREA, _ERASED_RATIO, generator)
    chosen = (generator.uniform(0, 1, images) < share) & fits
    return np.where(chosen[:, None], boxes, np.float32(0))


def _draw_backgrounds(share: float, side: int, images: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Half of the new backgrounds have the white point of the image, a quarter its mean colour, the rest any colour."""
    if not share:
        return np.zeros((images, 6), np.float32)
    chosen = generator.uniform(0, 1, (images, 1)) < share
    radius = np.where(chosen, side / 2 * generator.uniform(*_RADIUS, (images, 1)), side)
    kind, colour = generator.uniform(0, 1, (images, 1)), generator.uniform(0, 255, (images, 3))
    white, mean = kind < _WHITE_POINT, (kind >= _WHITE_POINT) & (kind < _WHITE_POINT + _MEAN_COLOUR)
    added = np.where(white | mean, 0, colour)
    return np.concatenate([radius, white, mean, added], axis=1).astype(np.float32)


def _draw_recolouring(policy: Policy, images: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw the density as a gain for the image and a tint for each channel, and the rest for each channel."""
    if not policy.recolours:
        return np.zeros((images, 3, 3), np.float32)
    gain = generator.uniform(-policy.density, policy.density, (images, 1))
    tint = generator.uniform(-policy.density / 2, policy.density / 2, (images, 3))
    spread = generator.uniform(-policy.contrast, policy.contrast, (images, 3))
    shift = generator.uniform(-policy.brightness, policy.brightness, (images, 3))
    return np.stack([(1 + gain) * (1 + tint), np.exp(spread), 255 * shift], axis=2).astype(np.float32)


def _draw_blurs(largest: float, images: int, generator: np.random.Generator) -> npt.NDArray[np.float32]:
    if not largest:
        return np.zeros((images, 1), np.float32)
    blurred = generator.uniform(0, 1, (images, 1)) < _BLURRED
    return np.where(blurred, generator.uniform(0, largest, (images, 1)), 0).astype(np.float32)
