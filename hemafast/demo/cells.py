"""Draw white blood cells from a table of morphologies, amid red cells.

A picture is built as absorbance, where stained bodies add up, and becomes light at the end. Lengths are in micrometres
unless a name ends in `_px`. Pairs are closed ranges; each cell draws its own value from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Range = tuple[float, float]
Plane = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]

_DISC_SPACING_UM = 0.3
_THINNEST_UM = 0.22  # half-width of a filament; thinner ones would break into beads


@dataclass(frozen=True)
class Stain:
    """The slides of one laboratory: size and scale of a picture, colours (8-bit RGB), light, focus and noise."""

    name: str
    width_px: int
    height_px: int
    um_per_px: float
    colours: Mapping[str, tuple[int, int, int]]
    brightness: Range
    focus_px: Range
    noise: Range
    pallor: Range
    """Paleness of the middle of red cells (0 to 1)."""


@dataclass(frozen=True)
class Granules:
    """One kind of granule; `over_nucleus` says how far it shows above the nucleus (0 to 1)."""

    colour: str
    radius: Range
    per_um2: Range
    strength: Range
    over_nucleus: float = 0.0


@dataclass(frozen=True)
class Morphology:
    """What distinguishes a class: size, a nucleus shaped as a bent string of lobes, cytoplasm and granules."""

    diameter: Range
    girth: Range
    """Half-width of a lobe in cell radii."""
    stretch: Range
    """Length of a lobe in lobe widths; the nucleus is round near 0."""
    blue: Range
    """Colour of the cytoplasm, from pink (0) to blue (1)."""
    lobes: tuple[int, int] = (1, 1)
    waist: Range = (0.9, 1.0)
    """Width between two lobes in lobe widths: a filament near 0, an even band at 1."""
    bend: Range = (0, 30)
    """Degrees that the string turns from end to end."""
    warp: Range = (0.1, 0.25)
    """Unevenness of the edge of the nucleus."""
    grain: Range = (0.4, 0.6)
    """Size of the clumps of chromatin; finer chromatin has less contrast."""
    depth: Range = (0.9, 1.15)
    """Absorbance of the nucleus, relative to the stain."""
    granules: Granules | None = None


_SPECIFIC = Granules("specific", (0.13, 0.2), (1.2, 3.0), (0.3, 0.6))
_AZUROPHILIC = Granules("azurophilic", (0.15, 0.23), (1.8, 3.6), (0.6, 0.95), over_nucleus=0.7)
_BASOPHILIC = Granules("basophilic", (0.26, 0.42), (0.9, 1.8), (0.8, 1.0), over_nucleus=0.95)
_EOSINOPHILIC = Granules("eosinophilic", (0.28, 0.42), (2.4, 3.8), (0.6, 0.9), over_nucleus=0.03)

# fmt: off
MORPHOLOGIES: Mapping[str, Morphology] = {
    "basophil": Morphology((10.5, 13.5), girth=(0.4, 0.48), stretch=(0.6, 0.85), blue=(0.1, 0.5), lobes=(2, 3),
                           waist=(0.5, 0.75), bend=(80, 200), depth=(0.62, 0.85), granules=_BASOPHILIC),
    "eosinophil": Morphology((12.5, 15.5), girth=(0.33, 0.4), stretch=(1.15, 1.4), blue=(0.0, 0.35), lobes=(2, 2),
                             waist=(0.1, 0.3), bend=(70, 170), granules=_EOSINOPHILIC),
    "erythroblast": Morphology((8.5, 12.0), girth=(0.48, 0.62), stretch=(0.0, 0.12), blue=(0.3, 0.95),
                               warp=(0.05, 0.15), grain=(0.55, 0.9), depth=(1.15, 1.4)),
    "lymphocyte_typical": Morphology((8.0, 10.5), girth=(0.76, 0.87), stretch=(0.0, 0.12), blue=(0.55, 1.0),
                                     grain=(0.6, 0.95), depth=(1.0, 1.25)),
    "metamyelocyte": Morphology((11.5, 15.0), girth=(0.41, 0.48), stretch=(0.95, 1.2), blue=(0.1, 0.5),
                                bend=(115, 165), granules=_SPECIFIC),
    "monocyte": Morphology((14.0, 18.0), girth=(0.38, 0.47), stretch=(0.55, 0.75), blue=(0.45, 0.85), lobes=(2, 2),
                           waist=(0.72, 0.95), bend=(130, 230), warp=(0.4, 0.75), depth=(0.75, 1.0)),
    "myeloblast": Morphology((12.5, 18.0), girth=(0.76, 0.86), stretch=(0.0, 0.12), blue=(0.65, 1.0),
                             grain=(0.18, 0.28), depth=(0.72, 0.95)),
    "myelocyte": Morphology((12.5, 16.5), girth=(0.5, 0.58), stretch=(0.08, 0.3), blue=(0.2, 0.65),
                            granules=_SPECIFIC),
    "neutrophil_banded": Morphology((12.0, 14.5), girth=(0.23, 0.29), stretch=(1.4, 1.75), blue=(0.0, 0.35),
                                    lobes=(2, 2), waist=(0.8, 1.0), bend=(150, 235), granules=_SPECIFIC),
    "neutrophil_segmented": Morphology((12.0, 14.0), girth=(0.28, 0.33), stretch=(1.1, 1.3), blue=(0.0, 0.35),
                                       lobes=(3, 5), waist=(0.08, 0.2), bend=(130, 290), granules=_SPECIFIC),
    "promyelocyte": Morphology((15.0, 18.5), girth=(0.6, 0.7), stretch=(0.0, 0.16), blue=(0.4, 0.9),
                               grain=(0.28, 0.45), depth=(0.75, 0.98), granules=_AZUROPHILIC),
}

ACEVEDO_20 = Stain("Acevedo_20", 360, 363, um_per_px=0.1, colours={
    "background": (253, 225, 202), "red cell": (198, 161, 158), "nucleus": (74, 32, 126),
    "pink": (222, 186, 188), "blue": (116, 110, 168), "specific": (164, 104, 150), "azurophilic": (104, 40, 128),
    "eosinophilic": (172, 92, 116), "basophilic": (54, 16, 104),
}, brightness=(0.95, 1.02), focus_px=(0.5, 0.9), noise=(1.0, 2.2), pallor=(0.45, 0.92))

MATEK_19 = Stain("Matek_19", 400, 400, um_per_px=0.0725, colours={
    "background": (240, 232, 237), "red cell": (205, 168, 188), "nucleus": (84, 4, 162),
    "pink": (228, 198, 230), "blue": (116, 108, 208), "specific": (186, 124, 198), "azurophilic": (122, 26, 158),
    "eosinophilic": (188, 96, 156), "basophilic": (62, 4, 128),
}, brightness=(0.86, 1.04), focus_px=(0.9, 1.9), noise=(0.5, 1.1), pallor=(0.1, 0.6))
# fmt: on


def draw_cell(cell_class: str, stain: Stain, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one white blood cell amid red cells.

    Args:
        cell_class: a key of MORPHOLOGIES.
        stain: the laboratory, ACEVEDO_20 or MATEK_19.
        generator: the only source of chance.

    Returns:
        RGB pixels, uint8 (stain.height_px, stain.width_px, 3).

    Raises:
        ValueError: MORPHOLOGIES does not have the class.
    """
    if cell_class not in MORPHOLOGIES:
        raise ValueError(f"unknown cell class {cell_class!r}; known: {', '.join(MORPHOLOGIES)}")
    morphology = MORPHOLOGIES[cell_class]
    picture = np.zeros((3, stain.height_px, stain.width_px), np.float32)
    size = np.array([stain.width_px, stain.height_px]) * stain.um_per_px
    centre = generator.normal(0.5, 0.025, 2).clip(0.44, 0.56) * size
    radius = generator.uniform(*morphology.diameter) / 2
    tint = np.float32(np.exp(generator.normal(0, 0.25))) * _absorbance("red cell", stain)
    pallor = generator.uniform(*stain.pallor)
    for place in _strew(size, centre, radius, generator):
        _paint_red_cell(_Patch(picture, place, generator.normal(3.8, 0.25), stain), tint, pallor, generator)
    _paint_white_cell(_Patch(picture, centre, radius, stain), morphology, generator)
    # Wider than the differences between most classes: colour alone must not give a class away.
    picture *= np.exp(generator.normal(0, 0.1, (3, 1, 1)))
    return _photograph(picture, stain, generator)


class _Patch:
    """The part of a picture that a cell of `radius` around `centre` covers; empty if it lies outside."""

    def __init__(self, picture: Plane, centre: Points, radius: float, stain: Stain) -> None:
        (left, top), (right, bottom) = (
            ((centre + reach) / stain.um_per_px).astype(int).clip(0, (stain.width_px, stain.height_px))
            for reach in (-1.32 * radius, 1.32 * radius)
        )
        self.absorbance = picture[:, top:bottom, left:right]
        self.x = (np.arange(left, right) * stain.um_per_px - centre[0]).astype(np.float32)[None, :]
        self.y = (np.arange(top, bottom) * stain.um_per_px - centre[1]).astype(np.float32)[:, None]
        self.shape, self.radius, self.stain = self.absorbance.shape[1:], radius, stain

    def outline(self, ruffle: float, generator: np.random.Generator) -> Plane:
        """Distance from the centre relative to a wavy circle: below 1 inside, above 1 outside."""
        angle, edge = np.arctan2(self.y, self.x), np.full(self.shape, self.radius, np.float32)
        for waves in (2, 3, 4, 6):
            height = self.radius * generator.normal(0, 2 * ruffle / waves)
            edge += height * np.cos(waves * angle + generator.uniform(0, 2 * np.pi))
        return np.asarray(np.hypot(self.x, self.y) / edge, np.float32)

    def noise(self, grain: float, generator: np.random.Generator) -> Plane:
        """Smooth noise of unit variance, whose blobs are about `grain` wide."""
        rows, columns = (side * self.stain.um_per_px / grain for side in self.shape)
        coarse = generator.standard_normal((math.ceil(rows) + 2, math.ceil(columns) + 2), dtype=np.float32)
        x, y = generator.random(2)  # keeps the lattice from showing at the same place in every picture
        box = (x, y, x + columns, y + rows)
        fine = Image.fromarray(coarse).resize(self.shape[::-1], Image.Resampling.BICUBIC, box=box)
        return 1.35 * np.asarray(fine, np.float32)

    def inside(self, distance: Plane) -> Plane:
        """Smooth mask (0 to 1) of the negative side of a signed distance."""
        return np.asarray(np.clip(0.5 - distance / (1.4 * self.stain.um_per_px), 0, 1), np.float32)


def _strew(size: Points, centre: Points, clear: float, generator: np.random.Generator) -> list[Points]:
    """Centres of red cells that leave the white cell free and overlap little; crowding differs from slide to slide."""
    spacing, placed = generator.uniform(5.5, 8), [centre]
    for place in generator.uniform(-4, size + 4, (int(generator.integers(15, 90)), 2)):
        if math.dist(place, centre) > clear + 3.6 and all(math.dist(place, other) > spacing for other in placed[1:]):
            placed.append(place)
    return placed[1:]


def _paint_red_cell(patch: _Patch, tint: Plane, pallor: float, generator: np.random.Generator) -> None:
    rho = patch.outline(generator.uniform(0.01, 0.04), generator)
    hollow = min(pallor * generator.normal(1, 0.2), 0.9) * np.exp(-np.square(rho / generator.uniform(0.42, 0.66)))
    patch.absorbance += tint * (patch.inside((rho - 1) * patch.radius) * (1.04 - hollow - 0.15 * rho**6))


def _paint_white_cell(patch: _Patch, morphology: Morphology, generator: np.random.Generator) -> None:
    nucleus = _nucleus_distance(patch, morphology, generator)
    cell = (patch.outline(generator.uniform(0.01, 0.05), generator) - 1) * patch.radius
    membrane = np.minimum(cell, nucleus - 0.3)  # it bulges where the nucleus presses against it
    core = patch.inside(nucleus)
    paint = _cytoplasm(patch, morphology, generator)
    paint += core * (_chromatin(patch, morphology, nucleus, generator) - paint)
    if granules := morphology.granules:
        cover = _granule_cover(patch, granules, membrane, generator) * (1 - core * (1 - granules.over_nucleus))
        # Granules add to what lies under them only up to their own colour: they never bleach a dark nucleus.
        paint += cover * np.maximum(_absorbance(granules.colour, patch.stain) - paint, 0)
    patch.absorbance += patch.inside(membrane) * (paint - 0.75 * patch.absorbance)


def _nucleus_distance(patch: _Patch, morphology: Morphology, generator: np.random.Generator) -> Plane:
    """Signed distance to the edge of the nucleus, a union of discs; negative inside."""
    warp = generator.uniform(*morphology.warp)
    x, y = (axis + warp * patch.noise(patch.radius / 2.2, generator) for axis in (patch.x, patch.y))
    distance = np.full(patch.shape, np.inf, np.float32)
    for centre_x, centre_y, radius in _discs(morphology, patch.radius, generator).astype(np.float32):
        np.minimum(distance, np.sqrt((x - centre_x) ** 2 + (y - centre_y) ** 2) - radius, out=distance)
    return distance


def _discs(morphology: Morphology, cell_radius: float, generator: np.random.Generator) -> Points:
    """Centre x, centre y and radius (n, 3) of the discs that make up the nucleus."""
    lobes = int(generator.integers(*morphology.lobes, endpoint=True))
    girth = generator.uniform(*morphology.girth) * cell_radius
    length = lobes * generator.uniform(*morphology.stretch) * 2 * girth
    along = np.linspace(0, 1, max(8, math.ceil(length / _DISC_SPACING_UM)))
    heading = generator.uniform(0, 2 * np.pi) + np.radians(generator.uniform(*morphology.bend)) * along
    centres = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * length / len(along)
    # Discs bulge past the ends of their own profile, so a profile is kept shorter than its lobe.
    across = np.clip(1.65 * (2 * (along * lobes % 1) - 1), -1, 1)
    waist = generator.uniform(*morphology.waist)
    radii = np.maximum(girth * (waist + (1 - waist) * np.sqrt(1 - across**2)), _THINNEST_UM)
    # Centre the nucleus, shrink it until it fits the cell, and push it towards the membrane.
    centres -= np.average(centres, axis=0, weights=radii**2)
    extent = (np.hypot(*centres.T) + radii).max()
    shrink, turn = min(1.0, 0.92 * cell_radius / extent), generator.uniform(0, 2 * np.pi)
    push = generator.uniform(0.2, 1) * max(0.0, 0.95 * cell_radius - shrink * extent)
    return np.column_stack([centres * shrink + push * np.array([np.cos(turn), np.sin(turn)]), radii * shrink])


def _cytoplasm(patch: _Patch, morphology: Morphology, generator: np.random.Generator) -> Plane:
    """Absorbance (3, rows, columns)."""
    blue = np.clip(generator.uniform(*morphology.blue) + generator.normal(0, 0.13), 0, 1)
    tint = (1 - blue) * _absorbance("pink", patch.stain) + blue * _absorbance("blue", patch.stain)
    amount = 1 + 0.1 * patch.noise(1.1, generator) + 0.08 * patch.noise(0.3, generator)
    return np.asarray(np.exp(generator.normal(0, 0.3)) * amount * tint, np.float32)


def _chromatin(patch: _Patch, morphology: Morphology, nucleus: Plane, generator: np.random.Generator) -> Plane:
    """Absorbance (3, rows, columns) of the nucleus: clumps and a dark edge."""
    grain = generator.uniform(*morphology.grain)
    clumps = np.tanh(0.8 * patch.noise(2 * grain, generator) + patch.noise(grain, generator))
    amount = 1 + 0.4 * grain * clumps + 0.14 * np.exp(np.minimum(nucleus, 0) / 0.35)
    depth = generator.uniform(*morphology.depth) * np.exp(generator.normal(0, 0.13))
    return np.asarray(depth * amount * _absorbance("nucleus", patch.stain), np.float32)


def _granule_cover(patch: _Patch, granules: Granules, membrane: Plane, generator: np.random.Generator) -> Plane:
    """Opacity (0 to 1) of granules strewn over the cell."""
    radius, pixels = generator.uniform(*granules.radius), math.prod(patch.shape)
    count = generator.poisson(generator.uniform(*granules.per_um2) * pixels * patch.stain.um_per_px**2)
    # A heavier seed grows a larger granule once the blurred seeds are cut at a fixed level.
    seeds = np.bincount(generator.integers(pixels, size=count), generator.uniform(0.6, 1.3, count), minlength=pixels)
    strewn = seeds.reshape(patch.shape).astype(np.float32) * (membrane < -0.8 * radius)
    sigma_px = 0.75 * radius / patch.stain.um_per_px
    blurred = ndimage.gaussian_filter(strewn, sigma_px, truncate=3.0) * (2 * np.pi * sigma_px**2)
    return np.asarray(np.clip((blurred - 0.3) / 0.4, 0, 1) * generator.uniform(*granules.strength), np.float32)


def _photograph(absorbance: Plane, stain: Stain, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Light through the slide: uneven lamp, focus, and noise, which is mostly in brightness after demosaicing."""
    height, width = absorbance.shape[1:]
    across, down = (generator.normal(0, 0.016) * np.linspace(-1, 1, side) for side in (width, height))
    lamp = generator.uniform(*stain.brightness) * (1 + across[None, :] + down[:, None])
    white = np.reshape(stain.colours["background"], (3, 1, 1)) * generator.normal(1.0, 0.012, (3, 1, 1))
    light = np.exp(-absorbance) * (lamp * white).astype(np.float32)
    focus = generator.uniform(*stain.focus_px)
    light = ndimage.gaussian_filter(light, (0, focus, focus), truncate=3.0)
    light += generator.uniform(*stain.noise) * generator.standard_normal((height, width), dtype=np.float32)
    return np.ascontiguousarray(np.rint(light).clip(0, 255).transpose(1, 2, 0), np.uint8)


def _absorbance(name: str, stain: Stain) -> Plane:
    """Absorbance (3, 1, 1) that turns the background into a colour of the stain."""
    # The offset keeps a channel of 0 at a finite absorbance.
    light = (np.array(stain.colours[name]) + 2) / (np.array(stain.colours["background"]) + 2)
    return np.asarray(np.maximum(-np.log(light), 0).reshape(3, 1, 1), np.float32)
