"""What all pictures share: figures without a display, colours that most eyes can tell apart, pictures within pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hemafast.metrics import Confusion

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


def pixels_of(figure: Any) -> npt.NDArray[np.uint8]:
    """A figure as uint8 (height, width, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(drawn(lambda file: save(figure, file)))) as picture:
        return np.asarray(picture.convert("RGB"))


def confusion_figure(confusion: Confusion, classes: Sequence[str], title: str) -> Any:
    """A figure of one confusion matrix (classes, classes), as `draw_confusion` draws it."""
    figure, (axis,) = subplots(1, width=6.2, height=6.0, columns=1)
    draw_confusion(axis, confusion, classes)
    axis.set_title(title, parse_math=False)
    return figure


def draw_confusion(axis: Any, confusion: Confusion, classes: Sequence[str]) -> None:
    """Draw a confusion matrix: shades are shares of the true class, numbers are images."""
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    ticks = range(len(classes))
    # parse_math: names are the user's, and a dollar sign in one starts no formula.
    axis.set_xticks(ticks, classes, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
    axis.set_yticks(ticks, classes, fontsize=8, parse_math=False)
    axis.set_xlabel("predicted")
    axis.set_ylabel("true")
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, confusion[row, column], ha="center", va="center", fontsize=8, color=colour)


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
