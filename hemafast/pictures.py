"""Shared by all pictures: figures without a display, colours for the colour-blind, names, pictures inside pages."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from hemafast.metrics import Confusion

TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"
DOMAIN_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours."""

_DPI = 110
_LONGEST = 28  # letters of a name in a picture
_MOST_CLASSES = 40  # named on an axis, and with numbers


def subplots(count: int, *, width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    """A figure with `count` axes, row by row; `width` and `height` of each are in inches."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def save(figure: Any, target: Path | IO[bytes], dpi: int = _DPI) -> None:
    """Write a figure as PNG. A letter missing from the font becomes a box, without a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.savefig(target, format="png", dpi=dpi)


def short(name: str) -> str:
    """A name cut to fit into a picture; tables show it whole."""
    return name if len(name) <= _LONGEST else name[: _LONGEST - 3] + "..."


def label_of(name: str) -> str:
    """A name for a legend, which reads dollar signs as formulas and skips names that begin with an underscore."""
    return name.lstrip("_").replace("$", r"\$")


def domain_style(index: int, domain: str) -> dict[str, Any]:
    """Colour and label of a domain's curve; colours repeat."""
    return {"color": DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)], "label": label_of(short(domain))}


def pixels_of(figure: Any) -> npt.NDArray[np.uint8]:
    """A figure as uint8 (height, width, 3)."""
    from PIL import Image

    with Image.open(io.BytesIO(drawn(lambda file: save(figure, file)))) as picture:
        return np.asarray(picture.convert("RGB"))


def confusion_figure(confusions: Mapping[str, Confusion], classes: Sequence[str]) -> Any:
    """A figure of confusion matrices (classes, classes) by title, two in a row.

    Shades are shares of the true class, numbers are images. Of more classes than there is room for, some are named, and
    there are no numbers.
    """
    figure, axes = subplots(len(confusions), width=6.2, height=6.0, columns=2)
    for axis, (title, confusion) in zip(axes, confusions.items(), strict=True):
        _draw_confusion(axis, confusion, classes)
        axis.set_title(title, parse_math=False)
    return figure


def _draw_confusion(axis: Any, confusion: Confusion, classes: Sequence[str]) -> None:
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-len(classes) // _MOST_CLASSES)
    ticks, names = range(0, len(classes), step), list(classes)[::step]
    # parse_math=False: a dollar sign in a user's name is not a formula.
    axis.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
    axis.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    if step > 1:
        return
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axis.text(column, row, confusion[row, column], ha="center", va="center", fontsize=8, color=colour)


def drawn(draw: Callable[[IO[bytes]], None]) -> bytes:
    """The bytes of the picture that `draw` writes."""
    picture = io.BytesIO()
    draw(picture)
    return picture.getvalue()


def embedded(draw: Callable[[IO[bytes]], None]) -> str:
    """The picture that `draw` writes as a data URL, so that a page needs no other file."""
    return data_address(drawn(draw), "png")


def embedded_pixels(pixels: npt.NDArray[np.uint8], side: int) -> str:
    """uint8 pixels (height, width, 3) as a data URL: a JPEG of `side` x `side` pixels."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(picture, "JPEG", quality=88)
    return data_address(picture.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    """The bytes of a picture as a data URL."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
