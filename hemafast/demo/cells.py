"""White blood cells drawn from a table of morphologies, on a smear of red cells.

The picture is built as a field of optical density (absorbance) in which cells add up the way stained, translucent
bodies do, and is turned into light at the very end. Lengths are in micrometres unless a name ends in ``_px``; random
properties are given as closed ranges ``(low, high)``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

Colour: TypeAlias = tuple[int, int, int]
Range: TypeAlias = tuple[float, float]
Count: TypeAlias = tuple[int, int]
Plane: TypeAlias = npt.NDArray[np.float32]

_DISC_SPACING_UM = 0.3
_OUTLINE_STEPS = 512
_NEIGHBOUR_CHANCE = 0.07
_PLATELET_CHANCE = 0.45
_CRENATED_CHANCE = 0.025


@dataclass(frozen=True)
class Stain:
    """One laboratory's slide, stain and camera: colours as 8-bit RGB, canvas in pixels."""

    name: str
    width_px: int
    height_px: int
    um_per_px: float
    background: Colour
    red_cell: Colour
    nucleus: Colour
    cytoplasm_pink: Colour
    cytoplasm_blue: Colour
    granules: Mapping[str, Colour]
    brightness: Range
    focus_px: Range
    sharpening: Range
    noise: Range
    chromatin_gain: float
    red_cells_per_um2: Range
    red_cell_pallor: Range


@dataclass(frozen=True)
class Granules:
    """One kind of cytoplasmic granule; ``over_nucleus`` is how far it shows above the nucleus (0 to 1)."""

    colour: str
    radius_um: Range
    per_um2: Range
    strength: Range
    over_nucleus: float = 0.0


@dataclass(frozen=True)
class Nucleus:
    """A nucleus as a bent string of lobes.

    ``girth`` is the half-width of a lobe in cell radii, ``stretch`` the length of one lobe in lobe widths, ``waist``
    the width between two lobes relative to the lobes (1 is an even band, near 0 a filament), ``bend_deg`` how far the
    string turns from end to end, ``s_chance`` how often it turns back halfway, ``eccentricity`` how near it lies to
    the membrane (0 to 1) and ``warp_um`` how irregular its edge is. Chromatin has a grain size, a contrast and a
    clumping (low is smooth, high is blocks); ``depth`` scales the absorbance.
    """

    girth: Range
    stretch: Range
    lobes: Count = (1, 1)
    waist: Range = (0.9, 1.0)
    bend_deg: Range = (0.0, 30.0)
    s_chance: float = 0.0
    eccentricity: Range = (0.0, 0.8)
    warp_um: Range = (0.1, 0.28)
    chromatin_um: Range = (0.35, 0.55)
    chromatin_contrast: Range = (0.16, 0.26)
    clumping: Range = (0.8, 1.4)
    depth: Range = (0.9, 1.1)
    nucleoli: Count = (0, 0)


@dataclass(frozen=True)
class Morphology:
    """What tells one class from another, apart from chance.

    ``basophilia`` mixes the cytoplasm from pink (0) to blue (1), ``opacity`` scales its absorbance, ``rim`` deepens
    it at the membrane, ``hof`` bleaches it beside the nucleus, ``ruffle`` is the unevenness of the outline in cell
    radii.
    """

    diameter_um: Range
    nucleus: Nucleus
    basophilia: Range
    opacity: Range = (0.8, 1.15)
    rim: Range = (0.0, 0.2)
    hof: Range = (0.0, 0.2)
    ruffle: Range = (0.01, 0.03)
    aspect: Range = (1.0, 1.14)
    vacuoles: Count = (0, 0)
    granules: tuple[Granules, ...] = field(default=())


_SPECIFIC = Granules("specific", (0.13, 0.2), (1.2, 3.0), (0.3, 0.6))
_AZUROPHILIC = Granules("azurophilic", (0.15, 0.23), (1.8, 3.6), (0.6, 0.95), over_nucleus=0.7)
_DUST = Granules("azurophilic", (0.1, 0.16), (0.2, 0.9), (0.3, 0.6))

MORPHOLOGIES: Mapping[str, Morphology] = MappingProxyType(
    {
        "basophil": Morphology(
            diameter_um=(10.5, 13.5),
            basophilia=(0.1, 0.5),
            nucleus=Nucleus(
                girth=(0.4, 0.48),
                stretch=(0.6, 0.85),
                lobes=(2, 3),
                waist=(0.5, 0.75),
                bend_deg=(80.0, 200.0),
                depth=(0.62, 0.85),
            ),
            granules=(
                Granules("basophilic", (0.32, 0.45), (0.9, 1.5), (0.85, 1.0), over_nucleus=0.95),
                Granules("basophilic", (0.2, 0.3), (0.5, 1.2), (0.7, 0.95), over_nucleus=0.8),
            ),
        ),
        "eosinophil": Morphology(
            diameter_um=(12.5, 15.5),
            basophilia=(0.0, 0.35),
            opacity=(0.4, 0.7),
            nucleus=Nucleus(
                girth=(0.33, 0.4),
                stretch=(1.15, 1.4),
                lobes=(2, 2),
                waist=(0.1, 0.3),
                bend_deg=(70.0, 170.0),
                eccentricity=(0.4, 1.0),
            ),
            granules=(
                Granules("eosinophilic", (0.4, 0.52), (2.2, 3.2), (0.5, 0.7)),
                Granules("eosinophilic", (0.24, 0.34), (2.2, 3.6), (0.75, 1.0), over_nucleus=0.04),
            ),
        ),
        "erythroblast": Morphology(
            diameter_um=(8.5, 12.0),
            basophilia=(0.3, 0.95),
            opacity=(0.75, 1.1),
            hof=(0.0, 0.25),
            ruffle=(0.02, 0.06),
            nucleus=Nucleus(
                girth=(0.48, 0.62),
                stretch=(0.0, 0.12),
                eccentricity=(0.1, 0.9),
                warp_um=(0.05, 0.15),
                chromatin_um=(0.55, 0.9),
                chromatin_contrast=(0.12, 0.22),
                clumping=(1.5, 2.5),
                depth=(1.15, 1.4),
            ),
        ),
        "lymphocyte_typical": Morphology(
            diameter_um=(8.0, 10.5),
            basophilia=(0.55, 1.0),
            rim=(0.1, 0.5),
            ruffle=(0.015, 0.05),
            nucleus=Nucleus(
                girth=(0.76, 0.87),
                stretch=(0.0, 0.12),
                eccentricity=(0.3, 1.0),
                chromatin_um=(0.6, 0.95),
                chromatin_contrast=(0.16, 0.26),
                clumping=(1.4, 2.4),
                depth=(1.0, 1.25),
            ),
        ),
        "metamyelocyte": Morphology(
            diameter_um=(11.5, 15.0),
            basophilia=(0.1, 0.5),
            nucleus=Nucleus(
                girth=(0.41, 0.48),
                stretch=(0.95, 1.2),
                waist=(0.88, 1.0),
                bend_deg=(115.0, 165.0),
                eccentricity=(0.5, 1.0),
                chromatin_um=(0.4, 0.65),
            ),
            granules=(_SPECIFIC, _DUST),
        ),
        "monocyte": Morphology(
            diameter_um=(14.0, 18.0),
            basophilia=(0.45, 0.85),
            opacity=(0.7, 1.0),
            ruffle=(0.03, 0.07),
            aspect=(1.0, 1.25),
            vacuoles=(1, 7),
            nucleus=Nucleus(
                girth=(0.38, 0.47),
                stretch=(0.55, 0.75),
                lobes=(2, 2),
                waist=(0.72, 0.95),
                bend_deg=(130.0, 230.0),
                s_chance=0.15,
                warp_um=(0.4, 0.75),
                chromatin_um=(0.4, 0.7),
                chromatin_contrast=(0.14, 0.24),
                clumping=(0.5, 0.9),
                depth=(0.75, 1.0),
            ),
            granules=(_DUST,),
        ),
        "myeloblast": Morphology(
            diameter_um=(12.5, 18.0),
            basophilia=(0.65, 1.0),
            opacity=(0.85, 1.2),
            rim=(0.2, 0.7),
            ruffle=(0.02, 0.05),
            aspect=(1.0, 1.2),
            nucleus=Nucleus(
                girth=(0.76, 0.86),
                stretch=(0.0, 0.12),
                eccentricity=(0.4, 1.0),
                chromatin_um=(0.18, 0.28),
                chromatin_contrast=(0.06, 0.12),
                clumping=(0.3, 0.6),
                depth=(0.72, 0.95),
                nucleoli=(1, 3),
            ),
        ),
        "myelocyte": Morphology(
            diameter_um=(12.5, 16.5),
            basophilia=(0.2, 0.65),
            hof=(0.2, 0.5),
            nucleus=Nucleus(
                girth=(0.5, 0.58),
                stretch=(0.08, 0.3),
                eccentricity=(0.7, 1.0),
                chromatin_um=(0.4, 0.65),
            ),
            granules=(_SPECIFIC, Granules("azurophilic", (0.16, 0.24), (0.2, 0.7), (0.5, 0.8), over_nucleus=0.1)),
        ),
        "neutrophil_banded": Morphology(
            diameter_um=(12.0, 14.5),
            basophilia=(0.0, 0.35),
            nucleus=Nucleus(
                warp_um=(0.08, 0.2),
                girth=(0.23, 0.29),
                stretch=(1.4, 1.75),
                lobes=(2, 2),
                waist=(0.8, 1.0),
                bend_deg=(150.0, 235.0),
                s_chance=0.2,
                chromatin_um=(0.4, 0.65),
                depth=(0.95, 1.2),
            ),
            granules=(_SPECIFIC, _DUST),
        ),
        "neutrophil_segmented": Morphology(
            diameter_um=(12.0, 14.0),
            basophilia=(0.0, 0.35),
            nucleus=Nucleus(
                girth=(0.28, 0.33),
                stretch=(1.1, 1.3),
                lobes=(3, 5),
                waist=(0.08, 0.2),
                bend_deg=(130.0, 290.0),
                s_chance=0.25,
                chromatin_um=(0.4, 0.65),
                depth=(0.95, 1.2),
            ),
            granules=(_SPECIFIC, _DUST),
        ),
        "promyelocyte": Morphology(
            diameter_um=(15.0, 18.5),
            basophilia=(0.4, 0.9),
            hof=(0.2, 0.6),
            ruffle=(0.015, 0.04),
            nucleus=Nucleus(
                girth=(0.6, 0.7),
                stretch=(0.0, 0.16),
                eccentricity=(0.7, 1.0),
                chromatin_um=(0.28, 0.45),
                chromatin_contrast=(0.1, 0.18),
                depth=(0.75, 0.98),
                nucleoli=(1, 2),
            ),
            granules=(_AZUROPHILIC,),
        ),
    }
)

ACEVEDO_20 = Stain(
    name="Acevedo_20",
    width_px=360,
    height_px=363,
    um_per_px=0.1,
    background=(253, 225, 202),
    red_cell=(198, 161, 158),
    nucleus=(74, 32, 126),
    cytoplasm_pink=(222, 186, 188),
    cytoplasm_blue=(116, 110, 168),
    granules=MappingProxyType(
        {
            "specific": (164, 104, 150),
            "azurophilic": (104, 40, 128),
            "eosinophilic": (172, 92, 116),
            "basophilic": (54, 16, 104),
        }
    ),
    brightness=(0.95, 1.02),
    focus_px=(0.5, 0.9),
    sharpening=(0.3, 0.9),
    noise=(1.0, 2.2),
    chromatin_gain=1.1,
    red_cells_per_um2=(0.007, 0.02),
    red_cell_pallor=(0.45, 0.92),
)

MATEK_19 = Stain(
    name="Matek_19",
    width_px=400,
    height_px=400,
    um_per_px=0.0725,
    background=(240, 232, 237),
    red_cell=(205, 168, 188),
    nucleus=(84, 4, 162),
    cytoplasm_pink=(228, 198, 230),
    cytoplasm_blue=(116, 108, 208),
    granules=MappingProxyType(
        {
            "specific": (186, 124, 198),
            "azurophilic": (122, 26, 158),
            "eosinophilic": (188, 96, 156),
            "basophilic": (62, 4, 128),
        }
    ),
    brightness=(0.86, 1.04),
    focus_px=(0.9, 1.9),
    sharpening=(0.0, 0.7),
    noise=(0.5, 1.1),
    chromatin_gain=1.2,
    red_cells_per_um2=(0.007, 0.021),
    red_cell_pallor=(0.1, 0.6),
)


@dataclass(frozen=True)
class _Batch:
    """How this one slide came out: every factor here is shared by the whole picture."""

    channels: Plane
    nucleus: float
    cytoplasm: float
    basophilia: float
    red_cell: float
    pallor: float
    light: Plane


@dataclass(frozen=True)
class _Window:
    """A rectangle of the canvas with coordinates in micrometres from a cell's centre."""

    rows: slice
    columns: slice
    x: Plane
    y: Plane
    um_per_px: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.y.shape[0], self.x.shape[1]


@dataclass(frozen=True)
class _Body:
    """A round obstacle on the smear, in micrometres from the canvas corner."""

    x: float
    y: float
    radius: float


def draw_cell(cell_class: str, stain: Stain, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw one white blood cell of ``cell_class`` amid red cells, as a photograph under ``stain``.

    Returns an RGB image of shape ``(stain.height_px, stain.width_px, 3)``. All chance comes from ``generator``.
    Raises ``ValueError`` for a class that ``MORPHOLOGIES`` does not have.
    """
    if cell_class not in MORPHOLOGIES:
        raise ValueError(f"unknown cell class {cell_class!r}; known: {', '.join(MORPHOLOGIES)}")
    batch = _draw_batch(stain, generator)
    absorbance = np.zeros((3, stain.height_px, stain.width_px), np.float32)
    cells = _place_white_cells(cell_class, stain, generator)
    for red_cell in _place_red_cells([body for _, body in cells], stain, generator):
        _paint_red_cell(absorbance, red_cell, stain, batch, generator)
    if generator.random() < _PLATELET_CHANCE:
        _paint_platelets(absorbance, cells[0][1], stain, batch, generator)
    for name, body in cells:
        _paint_white_cell(absorbance, MORPHOLOGIES[name], body, stain, batch, generator)
    return _expose(absorbance, stain, batch, generator)


def _draw_batch(stain: Stain, generator: np.random.Generator) -> _Batch:
    # The spread of these factors is wider than the colour differences between most classes on purpose: colour alone
    # must not give a class away.
    brightness = generator.uniform(*stain.brightness)
    return _Batch(
        channels=np.exp(generator.normal(0.0, 0.08, (3, 1, 1))).astype(np.float32),
        nucleus=float(np.exp(generator.normal(0.0, 0.13))),
        cytoplasm=float(np.exp(generator.normal(0.0, 0.25))),
        basophilia=generator.normal(0.0, 0.13),
        red_cell=float(np.exp(generator.normal(-0.05, 0.2))),
        pallor=generator.uniform(*stain.red_cell_pallor),
        light=(brightness * generator.normal(1.0, 0.012, (3, 1, 1))).astype(np.float32),
    )


def _density(colour: Colour, stain: Stain) -> Plane:
    """Absorbance per channel, shape (3, 1, 1), that turns the background into ``colour``."""
    # The offset keeps a channel of 0 at a finite absorbance.
    light = (np.asarray(colour, np.float32) + 2) / (np.asarray(stain.background, np.float32) + 2)
    return np.asarray(np.maximum(-np.log(light), 0).reshape(3, 1, 1), np.float32)


def _window(canvas: Plane, x: float, y: float, reach: float, stain: Stain) -> _Window:
    """The part of the canvas within ``reach`` micrometres of a centre; empty when the centre is too far outside."""
    scale = stain.um_per_px
    left, right = np.clip([int((x - reach) / scale), int((x + reach) / scale) + 1], 0, canvas.shape[2]).tolist()
    top, bottom = np.clip([int((y - reach) / scale), int((y + reach) / scale) + 1], 0, canvas.shape[1]).tolist()
    return _Window(
        rows=slice(top, bottom),
        columns=slice(left, right),
        x=(np.arange(left, right, dtype=np.float32) * scale - x)[None, :].astype(np.float32),
        y=(np.arange(top, bottom, dtype=np.float32) * scale - y)[:, None].astype(np.float32),
        um_per_px=scale,
    )


def _smooth_noise(shape: tuple[int, int], grain_px: float, generator: np.random.Generator) -> Plane:
    """Unit-variance noise whose blobs are about ``grain_px`` wide, float32 of ``shape``."""
    height, width = (int(np.ceil(side / grain_px)) + 2 for side in shape)
    coarse = generator.standard_normal((height, width), dtype=np.float32)
    # Cropping the box at a random phase keeps the lattice from showing at the same place in every window.
    phase_x, phase_y = generator.random(2)
    box = (phase_x, phase_y, phase_x + shape[1] / grain_px, phase_y + shape[0] / grain_px)
    fine = np.asarray(Image.fromarray(coarse).resize(shape[::-1], Image.Resampling.BICUBIC, box=box), np.float32)
    return fine * np.float32(1.35)


def _coverage(distance: Plane, um_per_px: float) -> Plane:
    """Anti-aliased mask of the inside (negative side) of a signed distance in micrometres."""
    return np.asarray(np.clip(0.5 - distance / (1.4 * um_per_px), 0, 1), np.float32)


def _relative_radius(
    window: _Window, radius: float, aspect: float, waves: Mapping[int, float], generator: np.random.Generator
) -> Plane:
    """Distance from the centre relative to a wavy oval outline: below 1 inside, above 1 outside."""
    # One lookup per pixel, by a stand-in for the angle that needs no arctangent: 1 - cos / (|cos| + |sin|), with the
    # sign of the sine.
    places = np.linspace(-2, 2, _OUTLINE_STEPS + 1)
    share = 1 - np.abs(places)
    turns, tilt = np.arctan2(np.copysign(1 - np.abs(share), places), share), generator.uniform(0, np.pi)
    outline = 1 / np.hypot(np.cos(turns - tilt) * np.sqrt(aspect), np.sin(turns - tilt) / np.sqrt(aspect))
    for order, amplitude in waves.items():
        outline += amplitude * np.cos(order * turns + generator.uniform(0, 2 * np.pi))
    reciprocal = (1 / (radius * outline)).astype(np.float32)
    reach = np.abs(window.x) + np.abs(window.y) + np.float32(1e-6)
    place = np.copysign(1 - window.x / reach, window.y) * (_OUTLINE_STEPS / 4) + _OUTLINE_STEPS / 2
    distance = np.sqrt(np.square(window.x) + np.square(window.y))
    return np.asarray(distance * reciprocal[place.astype(np.intp)], np.float32)


def _place_white_cells(cell_class: str, stain: Stain, generator: np.random.Generator) -> list[tuple[str, _Body]]:
    """The cell of interest near the middle and, now and then, a neighbour cut by the border."""
    width, height = stain.width_px * stain.um_per_px, stain.height_px * stain.um_per_px
    radius = generator.uniform(*MORPHOLOGIES[cell_class].diameter_um) / 2
    x, y = generator.normal(0.5, 0.025, 2).clip(0.44, 0.56) * (width, height)
    cells = [(cell_class, _Body(float(x), float(y), radius))]
    if generator.random() < _NEIGHBOUR_CHANCE:
        name = ("neutrophil_segmented", "lymphocyte_typical", "monocyte")[generator.integers(3)]
        turn = generator.uniform(0, 2 * np.pi)
        away = 0.56 * np.array([width, height])
        x, y = (x, y) + away * (np.cos(turn), np.sin(turn))
        cells.append((name, _Body(float(x), float(y), generator.uniform(*MORPHOLOGIES[name].diameter_um) / 2)))
    return cells


def _place_red_cells(white: list[_Body], stain: Stain, generator: np.random.Generator) -> list[_Body]:
    """Red cells by dart throwing: crowding and overlap differ from slide to slide."""
    margin = 4.0
    width, height = stain.width_px * stain.um_per_px + 2 * margin, stain.height_px * stain.um_per_px + 2 * margin
    wanted = round(generator.uniform(*stain.red_cells_per_um2) * width * height)
    spacing, size = generator.uniform(0.72, 1.08), generator.uniform(3.45, 4.1)
    placed: list[_Body] = []
    for _ in range(12 * wanted):
        if len(placed) == wanted:
            break
        radius = size * generator.normal(1.0, 0.06)
        x, y = generator.random() * width - margin, generator.random() * height - margin
        near_white = any(math.hypot(x - w.x, y - w.y) < w.radius + 0.93 * radius for w in white)
        if not near_white and all(math.hypot(x - r.x, y - r.y) > spacing * (radius + r.radius) for r in placed):
            placed.append(_Body(x, y, radius))
    return placed


def _paint_red_cell(canvas: Plane, body: _Body, stain: Stain, batch: _Batch, generator: np.random.Generator) -> None:
    window = _window(canvas, body.x, body.y, 1.32 * body.radius, stain)
    if 0 in window.shape:
        return
    waves = {order: generator.normal(0, 0.03 / (order - 1)) for order in (2, 3, 4, 5)}
    if generator.random() < _CRENATED_CHANCE:
        waves[int(generator.integers(9, 15))] = generator.uniform(0.025, 0.05)
    rho = _relative_radius(window, body.radius, generator.uniform(1.0, 1.28), waves, generator)
    pallor = float(np.clip(batch.pallor + generator.normal(0, 0.14), 0, 0.9))
    square = rho * rho
    # Steep walls make a punched-out centre, gentle ones a shaded dimple.
    dimple = np.square(square) if generator.random() < 0.5 else square
    hollow = pallor * np.exp(-dimple / generator.uniform(0.42, 0.66) ** (4 if dimple is not square else 2))
    inside = _coverage((rho - 1) * body.radius, stain.um_per_px)
    thickness = (1.04 - hollow - 0.15 * square**3) * inside
    strength = batch.red_cell * generator.normal(1.0, 0.06)
    tint = (_density(stain.red_cell, stain) * batch.channels * strength).astype(np.float32)
    under = canvas[:, window.rows, window.columns]
    # Where two cells overlap both flatten, so the overlap is darker than one cell but not as dark as two.
    under *= 1 - 0.4 * inside
    under += thickness.astype(np.float32) * tint


def _paint_platelets(canvas: Plane, avoid: _Body, stain: Stain, batch: _Batch, generator: np.random.Generator) -> None:
    for _ in range(int(generator.integers(1, 4))):
        turn, radius = generator.uniform(0, 2 * np.pi), generator.uniform(0.7, 1.5)
        away = avoid.radius + radius + generator.uniform(0.5, 9.0)
        x, y = avoid.x + away * np.cos(turn), avoid.y + away * np.sin(turn)
        window = _window(canvas, x, y, 1.6 * radius, stain)
        if min(window.shape) < 8:
            continue
        waves = {order: generator.normal(0, 0.07) for order in (2, 3, 5, 7)}
        rho = _relative_radius(window, radius, generator.uniform(1.0, 1.5), waves, generator)
        grains = np.clip(0.7 + 0.5 * _smooth_noise(window.shape, 0.42 / stain.um_per_px, generator), 0.25, 1.5)
        body = _coverage((rho - 1) * radius, stain.um_per_px) * grains * (1.15 - 0.6 * rho.clip(0, 1) ** 2)
        tint = _density(stain.granules["azurophilic"], stain) * batch.channels
        canvas[:, window.rows, window.columns] += body * tint * generator.uniform(0.5, 0.9)


def _paint_white_cell(
    canvas: Plane,
    morphology: Morphology,
    body: _Body,
    stain: Stain,
    batch: _Batch,
    generator: np.random.Generator,
) -> None:
    window = _window(canvas, body.x, body.y, 1.32 * body.radius, stain)
    if min(window.shape) < 8:
        return
    nucleus = _nucleus_distance(window, morphology.nucleus, body.radius, generator)
    membrane = _membrane_distance(window, morphology, body.radius, nucleus, generator)
    inside, core = _coverage(membrane, stain.um_per_px), _coverage(nucleus, stain.um_per_px)
    paint = _cytoplasm(window, morphology, membrane, nucleus, stain, batch, generator)
    chromatin = _chromatin(window, morphology.nucleus, nucleus, stain, batch, generator)
    paint += core * (chromatin - paint)
    for granules in morphology.granules:
        cover = _granule_cover(window, granules, membrane, generator)
        cover *= 1 - core * (1 - granules.over_nucleus)
        tint = _density(stain.granules[granules.colour], stain) * batch.channels
        # A granule adds to what lies under it only up to its own colour: it never bleaches a dark nucleus.
        paint += cover * np.maximum(tint - paint, 0.1 * tint)
    under = canvas[:, window.rows, window.columns]
    under += inside * (paint - 0.75 * under)


def _nucleus_distance(window: _Window, nucleus: Nucleus, cell_radius: float, generator: np.random.Generator) -> Plane:
    """Signed distance to the nuclear membrane in micrometres, negative inside."""
    points, radii = _settle(*_string_of_lobes(nucleus, cell_radius, generator), nucleus, cell_radius, generator)
    warp = np.float32(generator.uniform(*nucleus.warp_um))
    grain = cell_radius / (2.2 * window.um_per_px)
    x = window.x + warp * _smooth_noise(window.shape, grain, generator)
    y = window.y + warp * _smooth_noise(window.shape, grain, generator)
    distance = np.full(window.shape, np.inf, np.float32)
    for (px, py), radius in zip(points.astype(np.float32), radii.astype(np.float32), strict=True):
        squared = np.square(x - px)
        squared += np.square(y - py)
        np.minimum(distance, np.sqrt(squared, out=squared) - radius, out=distance)
    return distance


def _string_of_lobes(
    nucleus: Nucleus, cell_radius: float, generator: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centres ``(n, 2)`` and radii ``(n,)`` in micrometres of the discs whose union is the nucleus."""
    lobes = int(generator.integers(nucleus.lobes[0], nucleus.lobes[1] + 1))
    girth = generator.uniform(*nucleus.girth) * cell_radius
    length = lobes * generator.uniform(*nucleus.stretch) * 2 * girth
    along = np.linspace(0, 1, max(8, math.ceil(length / _DISC_SPACING_UM)))
    bend = np.radians(generator.uniform(*nucleus.bend_deg))
    turned = np.abs(along - 0.5) if generator.random() < nucleus.s_chance else along - 0.5
    kinks = np.interp(along, np.linspace(0, 1, lobes + 2), generator.normal(0, 0.06 * bend, lobes + 2))
    heading = generator.uniform(0, 2 * np.pi) + bend * turned + kinks
    points = np.cumsum(np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0) * length / len(along)

    lobe = np.minimum((along * lobes).astype(int), lobes - 1)
    # The discs bulge past the ends of their own profile, so a lobe's profile is kept shorter than the lobe.
    across = np.clip(1.65 * (2 * (along * lobes - lobe) - 1), -1, 1)
    waist, size = generator.uniform(*nucleus.waist), generator.uniform(0.85, 1.12, lobes)[lobe]
    # A filament thinner than this breaks into beads, because it is made of discs too.
    radii = np.maximum(girth * (waist + (size - waist) * np.sqrt(1 - across**2)), 0.22)
    return points, radii


def _settle(
    points: npt.NDArray[np.float64],
    radii: npt.NDArray[np.float64],
    nucleus: Nucleus,
    cell_radius: float,
    generator: np.random.Generator,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centre the nucleus, shrink it until it fits the cell, then push it towards the membrane."""
    points = points - np.average(points, axis=0, weights=radii**2)
    extent = (np.hypot(*points.T) + radii).max()
    shrink = min(1.0, 0.92 * cell_radius / extent)
    push = generator.uniform(*nucleus.eccentricity) * max(0.0, 0.95 * cell_radius - shrink * extent)
    turn = generator.uniform(0, 2 * np.pi)
    return points * shrink + push * np.array([np.cos(turn), np.sin(turn)]), radii * shrink


def _membrane_distance(
    window: _Window, morphology: Morphology, radius: float, nucleus: Plane, generator: np.random.Generator
) -> Plane:
    """Signed distance to the cell membrane in micrometres, which bulges where the nucleus presses against it."""
    ruffle = generator.uniform(*morphology.ruffle)
    waves = {order: generator.normal(0, 2 * ruffle / order) for order in (2, 3, 4, 5, 7, 9)}
    rho = _relative_radius(window, radius, generator.uniform(*morphology.aspect), waves, generator)
    return np.asarray(np.minimum((rho - 1) * radius, nucleus - 0.3), np.float32)


def _cytoplasm(
    window: _Window,
    morphology: Morphology,
    membrane: Plane,
    nucleus: Plane,
    stain: Stain,
    batch: _Batch,
    generator: np.random.Generator,
) -> Plane:
    """Absorbance of the cytoplasm, shape ``(3, rows, columns)``."""
    blue = float(np.clip(generator.uniform(*morphology.basophilia) + batch.basophilia, 0, 1))
    pink_tint, blue_tint = _density(stain.cytoplasm_pink, stain), _density(stain.cytoplasm_blue, stain)
    tint = ((1 - blue) * pink_tint + blue * blue_tint) * batch.channels
    cloud = _smooth_noise(window.shape, 1.1 / stain.um_per_px, generator)
    mesh = _smooth_noise(window.shape, 0.3 / stain.um_per_px, generator)
    amount = 1 + 0.1 * cloud + 0.08 * mesh
    amount += generator.uniform(*morphology.rim) * np.exp(np.minimum(membrane, 0) / 0.7)
    amount -= generator.uniform(*morphology.hof) * np.exp(-((nucleus - 1.1) ** 2) / 0.9) * (membrane < -0.4)
    amount *= 1 - 0.85 * _vacuoles(window, morphology, membrane, nucleus, generator)
    amount *= generator.uniform(*morphology.opacity) * batch.cytoplasm
    return np.asarray(amount * tint, np.float32)


def _vacuoles(
    window: _Window, morphology: Morphology, membrane: Plane, nucleus: Plane, generator: np.random.Generator
) -> Plane:
    """Mask (0 to 1) of clear bubbles in the cytoplasm, clear of the membrane and mostly of the nucleus."""
    bubbles = np.zeros(window.shape, np.float32)
    free = np.argwhere((membrane < -0.7) & (nucleus > 0.2))
    count = int(generator.integers(morphology.vacuoles[0], morphology.vacuoles[1] + 1))
    for _ in range(count if len(free) else 0):
        row, column = free[generator.integers(len(free))]
        radius = generator.uniform(0.3, 0.85)
        distance = np.hypot(window.x - window.x[0, column], window.y - window.y[row, 0]) - radius
        np.maximum(bubbles, _coverage(distance, 2 * window.um_per_px), out=bubbles)
    return bubbles


def _chromatin(
    window: _Window, nucleus: Nucleus, distance: Plane, stain: Stain, batch: _Batch, generator: np.random.Generator
) -> Plane:
    """Absorbance of the nucleus, shape ``(3, rows, columns)``."""
    grain = generator.uniform(*nucleus.chromatin_um) / stain.um_per_px
    pattern = 0.8 * _smooth_noise(window.shape, 2 * grain, generator) + _smooth_noise(window.shape, grain, generator)
    contrast = generator.uniform(*nucleus.chromatin_contrast) * stain.chromatin_gain
    clumping = generator.uniform(*nucleus.clumping)
    amount = 1 + contrast * np.tanh(clumping * pattern) / math.tanh(clumping)
    amount += 0.14 * np.exp(np.minimum(distance, 0) / 0.35)
    amount *= 1 - 0.4 * _nucleoli(window, nucleus, distance, generator)
    amount *= generator.uniform(*nucleus.depth) * batch.nucleus
    tint = _density(stain.nucleus, stain) * batch.channels
    return np.asarray(amount * tint, np.float32)


def _nucleoli(window: _Window, nucleus: Nucleus, distance: Plane, generator: np.random.Generator) -> Plane:
    """Mask (0 to 1) of the pale nucleoli, well inside the nucleus."""
    pale = np.zeros(window.shape, np.float32)
    deep = np.argwhere(distance < 0.45 * distance.min())
    for _ in range(int(generator.integers(nucleus.nucleoli[0], nucleus.nucleoli[1] + 1)) if len(deep) else 0):
        row, column = deep[generator.integers(len(deep))]
        rho = np.hypot(window.x - window.x[0, column], window.y - window.y[row, 0]) / generator.uniform(0.7, 1.15)
        np.maximum(pale, np.exp(-(rho**4)).astype(np.float32), out=pale)
    return pale


def _granule_cover(window: _Window, granules: Granules, membrane: Plane, generator: np.random.Generator) -> Plane:
    """Opacity (0 to 1) of one kind of granule strewn over the cell."""
    radius = generator.uniform(*granules.radius_um)
    area = window.shape[0] * window.shape[1]
    count = generator.poisson(generator.uniform(*granules.per_um2) * area * window.um_per_px**2)
    # A heavier seed grows a larger granule once the blurred seeds are cut at a fixed level.
    seeds = np.bincount(generator.integers(area, size=count), generator.uniform(0.6, 1.3, count), minlength=area)
    strewn = seeds.reshape(window.shape).astype(np.float32) * (membrane < -0.8 * radius)
    sigma_px = 0.75 * radius / window.um_per_px
    blurred = ndimage.gaussian_filter(strewn, sigma_px, truncate=3.0) * np.float32(2 * np.pi * sigma_px**2)
    cover = np.clip((blurred - 0.3) / 0.4, 0, 1) * generator.uniform(*granules.strength)
    return np.asarray(cover, np.float32)


def _expose(absorbance: Plane, stain: Stain, batch: _Batch, generator: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Shine light through the smear and record it: uneven lamp, focus, in-camera sharpening, sensor noise.

    Uses up ``absorbance``: at this size a new array costs more than the arithmetic on it.
    """
    height, width = absorbance.shape[1:]
    across, down = (np.linspace(-1, 1, side, dtype=np.float32) for side in (width, height))
    lamp = 1 + generator.normal(0, 0.016) * across[None, :] + generator.normal(0, 0.016) * down[:, None]
    lamp += 0.004 * _smooth_noise((height, width), 3 / stain.um_per_px, generator)
    light = np.exp(np.negative(absorbance, out=absorbance), out=absorbance)
    light *= lamp
    light *= np.asarray(stain.background, np.float32).reshape(3, 1, 1) * batch.light
    focus = generator.uniform(*stain.focus_px)
    light = ndimage.gaussian_filter(light, (0, focus, focus), truncate=3.0)
    # Cameras sharpen brightness, not colour, and what demosaicing leaves of sensor noise is mostly in brightness too.
    grey = light.mean(axis=0)
    detail = generator.uniform(*stain.sharpening) * (grey - ndimage.gaussian_filter(grey, 2.0, truncate=2.0))
    detail += generator.uniform(*stain.noise) * generator.standard_normal((height, width), dtype=np.float32)
    light += detail
    np.clip(np.rint(light, out=light), 0, 255, out=light)
    return np.ascontiguousarray(light.transpose(1, 2, 0), np.uint8)
