"""The named policies: what is drawn at random for each image, and the DALI ops that act on the draws.

All randomness is drawn here with numpy and fed to the graph, so that a batch is a function of (seed, epoch, position)
alone: the same on a CPU and a GPU, from packed pixels and from files, for any number of threads, after any restart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Node = Any  # nvidia.dali.data_node.DataNode

WINDOW = 7 / 8
"""Side of the window that the network sees, as a share of the packed square: 224 of 256, as in the reference."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What is random about the view of an image."""

    random_window: bool
    """The window lies anywhere in the square, rather than in its centre."""
    symmetries: bool
    """One of the eight flips and quarter turns, at equal odds: a cell on a slide has no up."""


POLICIES = {
    "basic": Policy(random_window=True, symmetries=True),
    "none": Policy(random_window=False, symmetries=False),
}

SYMMETRIES: npt.NDArray[np.float32] = np.array(
    [[[x, 0], [0, y]] for x in (1, -1) for y in (1, -1)] + [[[0, x], [y, 0]] for x in (1, -1) for y in (1, -1)],
    dtype=np.float32,
)
"""The symmetries of the square as (8, 2, 2) matrices on (x, y); the first is the identity."""


@dataclass(frozen=True, slots=True)
class Views:
    """How each of n images is seen."""

    corner: npt.NDArray[np.float32]
    """(n, 2): top and left of the window in the packed square, in whole pixels."""
    symmetry: npt.NDArray[np.int64]
    """(n,): index into SYMMETRIES."""

    def __getitem__(self, rows: slice) -> Views:
        return Views(self.corner[rows], self.symmetry[rows])


def window_side(packed_size: int) -> int:
    """Side of the window in pixels of the packed square."""
    return round(packed_size * WINDOW)


def draw_views(policy: Policy, packed_size: int, images: int, generator: np.random.Generator) -> Views:
    """Draw how each of `images` images is seen under `policy`."""
    room = packed_size - window_side(packed_size)
    if policy.random_window:
        corner = generator.integers(0, room, size=(images, 2), endpoint=True)
    else:
        corner = np.full((images, 2), room // 2)
    symmetry = generator.integers(0, len(SYMMETRIES), size=images) if policy.symmetries else np.zeros(images, np.int64)
    return Views(corner.astype(np.float32), symmetry)


def warp_matrices(views: Views, packed_size: int, image_size: int) -> npt.NDArray[np.float32]:
    """(n, 2, 3) maps from (x, y, 1) of the output to the input of the warp, as `fn.warp_affine` takes them.

    Where window and output have the same size, the warp also cuts out the window; else a resize has done so before.
    """
    centre = np.full((1, 2, 1), image_size / 2, dtype=np.float32)
    turn = SYMMETRIES[views.symmetry]
    shift = centre - turn @ centre
    if window_is_exact(packed_size, image_size):
        shift = shift + views.corner[:, ::-1, None]  # (top, left) to (x, y)
    return np.concatenate([turn, shift], axis=2)


def apply_views(pixels: Node, corner: Node, matrix: Node, *, packed_size: int, image_size: int) -> Node:
    """DALI ops from packed squares to views: uint8 (packed_size, packed_size, 3) to (image_size, image_size, 3).

    `corner` is read only where the window has another size than the view, and may be None otherwise.

    One nearest-neighbour warp does window, flip and quarter turn at once: these move whole pixels, so it is exact, and
    it is faster than crop, flip and transpose one after the other. Another output size is scaled to first, with
    antialiasing.
    """
    from nvidia.dali import fn, types

    if not window_is_exact(packed_size, image_size):
        side = float(window_side(packed_size))
        pixels = fn.resize(
            pixels,
            roi_start=corner,
            roi_end=corner + side,
            size=(image_size, image_size),
            interp_type=types.INTERP_LINEAR,
            antialias=True,
        )
    return fn.warp_affine(
        pixels, matrix=matrix, size=(image_size, image_size), interp_type=types.INTERP_NN, fill_value=0
    )


def window_is_exact(packed_size: int, image_size: int) -> bool:
    """Whether the window of the packed square has the size of the view already, so that nothing is scaled."""
    return window_side(packed_size) == image_size
