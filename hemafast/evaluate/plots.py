"""Pictures of a run: confusion matrices and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hemafast.metrics import Confusion, macro_f1
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, save, subplots


def plot_confusions(target: Path | IO[bytes], confusions: Mapping[str, Confusion], classes: Sequence[str]) -> None:
    """Write a PNG of confusion matrices, two in a row.

    Shades are shares of the true class, numbers are images.
    """
    figure, axes = subplots(len(confusions), width=6.2, height=6.0, columns=2)
    for axis, (name, confusion) in zip(axes, confusions.items(), strict=True):
        _draw_confusion(axis, confusion, classes)
        title = f"{name}: macro-F1 {macro_f1(confusion):.3f}, {int(confusion.sum())} images"
        axis.set_title(title, parse_math=False)
    save(figure, target)


def plot_curves(target: Path | IO[bytes], rows: Sequence[Mapping[str, float]]) -> None:
    """Write a PNG of loss, macro-F1 and learning rate against epochs, from the rows of a training log."""
    figure, (losses, scores, rates) = subplots(3, width=4.6, height=3.4, columns=3)
    epochs = [row["epoch"] for row in rows]
    for axis, ending, title in ((losses, "loss", "loss"), (scores, "macro_f1", "macro-F1")):
        axis.plot(epochs, [row[f"train_{ending}"] for row in rows], color=TRAIN_COLOUR, marker="o", label="training")
        axis.plot(epochs, [row[f"val_{ending}"] for row in rows], color=VAL_COLOUR, marker="s", label="validation")
        axis.set_title(title)
    prefix = "val_macro_f1_"
    for index, key in enumerate(key for key in rows[0] if key.startswith(prefix)):
        colour = DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)]
        scores.plot(epochs, [row[key] for row in rows], color=colour, linestyle="--", label=key.removeprefix(prefix))
    rates.plot(epochs, [row["lr"] for row in rows], color=TRAIN_COLOUR, marker="o")
    rates.set_title("learning rate at the end of the epoch")
    for axis in (losses, scores, rates):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in (losses, scores):
        axis.legend(fontsize=8)
    save(figure, target)


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
