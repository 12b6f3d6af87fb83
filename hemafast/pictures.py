"""Shared by all pictures: figures without a display, colours for the colour-blind, names, pictures inside pages."""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hemafast.metrics import Confusion

if TYPE_CHECKING:
    from markupsafe import Markup

TRAIN_COLOUR, VAL_COLOUR = "#0072B2", "#D55E00"
DOMAIN_COLOURS = ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")
"""Okabe and Ito's colours."""

HEAT_COLOURS = "cividis"
"""Of heat maps: as light to the colour-blind as to all others, and in even steps. matplotlib and OpenCV have it."""

_DPI = 110
_INKS = "#010101", "#fefefe"
"""Letters on a coloured ground. Not quite black and white, which become the colours of the page in `on_page`."""
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
    with _any_letter():
        figure.savefig(target, format="png", dpi=dpi)


@contextmanager
def _any_letter() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        yield


def on_page(figure: Any, alt: str) -> Markup:
    """A figure as part of a page: SVG whose black is the colour of the page's letters, whose white is its paper.

    So it is readable in dark mode and on paper, and its text is as sharp and as large as that of the page. It has no
    background, so that the shadow of a box that scrolls can be seen.

    Args:
        figure: what matplotlib has drawn.
        alt: what the figure shows, for those who do not see it.

    Returns:
        An `svg` element. It needs no other file, and the same figure gives the same text.
    """
    import matplotlib as mpl
    from markupsafe import Markup, escape

    for axis in figure.axes:
        if axis.get_facecolor() == (1, 1, 1, 1):
            axis.set_facecolor("none")
    target = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with _any_letter(), mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hemafast"}):
        figure.savefig(target, format="svg", metadata=nothing, facecolor="none")
    text = target.getvalue().decode("utf-8")
    text = _GROUP_ID.sub("", text[text.index("<svg") :])  # two figures on a page would have the same
    text = text.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")
    return Markup(text.replace("<svg ", f'<svg class="plot" role="img" aria-label="{escape(alt)}" ', 1))


_GROUP_ID = re.compile(r' id="[a-z0-9.]+_\d+"')


def contrast(one: str, other: str) -> float:
    """The contrast of two colours such as "#16181b", from 1 to 21, by WCAG 2.2."""
    darker, lighter = sorted(_luminance(colour) + 0.05 for colour in (one, other))
    return lighter / darker


def _luminance(colour: str) -> float:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def ink_on(colour: str) -> str:
    """Dark or light, whichever is easier to read on `colour`; the contrast is never below 4.5."""
    return max(_INKS, key=lambda ink: contrast(ink, colour))


def shades(colour: str, paper: str) -> list[tuple[str, str]]:
    """Eleven grounds from nearly `paper` to `colour`, each with the ink for it."""
    from matplotlib.colors import to_hex, to_rgb

    full, none = np.array(to_rgb(colour)), np.array(to_rgb(paper))
    grounds = [to_hex(none + (full - none) * max(step / 10, _FAINTEST)) for step in range(11)]
    return [(ground, ink_on(ground)) for ground in grounds]


def heat_stops(count: int = 9) -> list[str]:
    """Colours of HEAT_COLOURS from the least to the most."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps[HEAT_COLOURS](np.linspace(0, 1, count))]


_FAINTEST = 0.08  # of the full colour: a cell that holds something differs from one that holds nothing


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
    colours = axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    step = -(-len(classes) // _MOST_CLASSES)
    ticks, names = range(0, len(classes), step), list(classes)[::step]
    # parse_math=False: a dollar sign in a user's name is not a formula.
    axis.set_xticks(ticks, names, rotation=45, ha="right", rotation_mode="anchor", fontsize=8, parse_math=False)
    axis.set_yticks(ticks, names, fontsize=8, parse_math=False)
    axis.set(xlabel="predicted", ylabel="true")
    if step > 1:
        return
    for row, column in zip(*np.nonzero(confusion), strict=True):
        colour = ink_on(hex_of(colours, shares[row, column]))
        axis.text(column, row, confusion[row, column], ha="center", va="center", fontsize=8, color=colour)


def hex_of(colours: Any, value: float) -> str:
    """The colour, such as "#16181b", that `colours` (what matplotlib calls a mappable) has for `value`."""
    from matplotlib.colors import to_hex

    return to_hex(colours.to_rgba(value))


def drawn(draw: Callable[[IO[bytes]], None]) -> bytes:
    """The bytes of the picture that `draw` writes."""
    picture = io.BytesIO()
    draw(picture)
    return picture.getvalue()


def embedded_pixels(pixels: npt.NDArray[np.uint8], side: int) -> str:
    """uint8 pixels (height, width, 3) as a data URL: a JPEG of `side` x `side` pixels."""
    from PIL import Image

    picture = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(picture, "JPEG", quality=88)
    return data_address(picture.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    """The bytes of a picture as a data URL."""
    return f"data:image/{kind};base64," + base64.b64encode(content).decode()
