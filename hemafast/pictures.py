"""What all pictures share: figures without a display, colours that most eyes can tell apart, pictures within pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"
DOMAIN_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours."""

_DPI = 110


def subplots(count: int, *, width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in it, row by row; sizes are inches of one of them."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def save(figure: Any, target: Path | IO[bytes], dpi: int = _DPI) -> None:
    """Write a figure as PNG. A letter that the font does not have becomes a box, without a warning."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(target, format="png", dpi=dpi)


def drawn(draw: Callable[[IO[bytes]], None]) -> bytes:
    """The bytes of the picture that `draw` writes."""
    picture = io.BytesIO()
    draw(picture)
    return picture.getvalue()


def embedded(draw: Callable[[IO[bytes]], None]) -> str:
    """A PNG as a data address, so that a page needs no other file."""
    return data_address(drawn(draw), "png")


def embedded_pixels(pixels: npt.NDArray[np.uint8], side: int) -> str:
    """uint8 (height, width, 3) as a data address: a JPEG of `side` pixels."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(picture, "JPEG", quality=88)
    return data_address(picture.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    """Bytes of a picture as the address of itself."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
