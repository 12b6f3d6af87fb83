"""Pictures of a run: confusion matrices and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hemafast.metrics import Confusion, macro_f1

_DPI = 110
_TRAIN, _VAL, _DOMAINS = "#0072B2", "#D55E00", ("#009E73", "#CC79A7", "#56B4E9", "#E69F00")  # Okabe and Ito: safe hues


def plot_confusions(target: Path | IO[bytes], confusions: Mapping[str, Confusion], classes: Sequence[str]) -> None:
    """Write a PNG of confusion matrices, two in a row.

    Shades are shares of the true class, numbers are images.
    """
    figure, axes = _subplots(len(confusions), width=6.2, height=6.0, columns=2)
    for axis, (name, confusion) in zip(axes, confusions.items(), strict=True):
        _draw_confusion(axis, confusion, classes)
        title = f"{name}: macro-F1 {macro_f1(confusion):.3f}, {int(confusion.sum())} images"
        axis.set_title(title, parse_math=False)
    _save(figure, target)


def plot_curves(target: Path | IO[bytes], rows: Sequence[Mapping[str, float]]) -> None:
    """Write a PNG of loss, macro-F1 and learning rate against epochs, from the rows of a training log."""
    figure, (losses, scores, rates) = _subplots(3, width=4.6, height=3.4, columns=3)
    epochs = [row["epoch"] for row in rows]
    for axis, ending, title in ((losses, "loss", "loss"), (scores, "macro_f1", "macro-F1")):
        axis.plot(epochs, [row[f"train_{ending}"] for row in rows], color=_TRAIN, marker="o", label="training")
        axis.plot(epochs, [row[f"val_{ending}"] for row in rows], color=_VAL, marker="s", label="validation")
        axis.set_title(title)
    prefix = "val_macro_f1_"
    for index, key in enumerate(key for key in rows[0] if key.startswith(prefix)):
        colour = _DOMAINS[index % len(_DOMAINS)]
        scores.plot(epochs, [row[key] for row in rows], color=colour, linestyle="--", label=key.removeprefix(prefix))
    rates.plot(epochs, [row["lr"] for row in rows], color=_TRAIN, marker="o")
    rates.set_title("learning rate at the end of the epoch")
    for axis in (losses, scores, rates):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in (losses, scores):
        axis.legend(fontsize=8)
    _save(figure, target)


def _subplots(count: int, *, width: float, height: float, columns: int) -> tuple[Any, list[Any]]:
    """A figure and `count` axes in it, row by row; sizes are inches of one of them."""
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(count)]


def _save(figure: Any, target: Path | IO[bytes]) -> None:
    figure.savefig(target, format="png", dpi=_DPI)


def _draw_confusion(axis: Any, confusion: Confusion, classes: Sequence[str]) -> None:
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
