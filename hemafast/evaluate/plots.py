"""Pictures of a run: confusion matrices and training curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from hemafast.engine.journal import Row, column
from hemafast.metrics import Confusion, macro_f1
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, draw_confusion, save, subplots


def plot_confusions(target: Path | IO[bytes], confusions: Mapping[str, Confusion], classes: Sequence[str]) -> None:
    """Write a PNG of confusion matrices, two in a row.

    Shades are shares of the true class, numbers are images.
    """
    figure, axes = subplots(len(confusions), width=6.2, height=6.0, columns=2)
    for axis, (name, confusion) in zip(axes, confusions.items(), strict=True):
        draw_confusion(axis, confusion, classes)
        title = f"{name}: macro-F1 {macro_f1(confusion):.3f}, {int(confusion.sum())} images"
        axis.set_title(title, parse_math=False)
    save(figure, target)


def plot_curves(target: Path | IO[bytes], rows: Sequence[Row]) -> None:
    """Write a PNG of loss, macro-F1 and learning rate against epochs, from the rows of a training log."""
    figure, (losses, scores, rates) = subplots(3, width=4.6, height=3.4, columns=3)
    for axis, name, title in ((losses, "loss", "loss"), (scores, "f1_macro", "macro-F1")):
        _draw_curve(axis, rows, "train", name, color=TRAIN_COLOUR, marker="o", label="training")
        _draw_curve(axis, rows, "val", name, color=VAL_COLOUR, marker="s", label="validation")
        axis.set_title(title)
    prefix = "f1_macro_"
    domains = dict.fromkeys(name for row in rows for name in row if row["phase"] == "val" and name.startswith(prefix))
    for index, name in enumerate(domains):
        colour = DOMAIN_COLOURS[index % len(DOMAIN_COLOURS)]
        _draw_curve(scores, rows, "val", name, color=colour, linestyle="--", label=name.removeprefix(prefix))
    _draw_curve(rates, rows, "train", "lr", color=TRAIN_COLOUR, marker="o")
    rates.set_title("learning rate at the end of the epoch")
    for axis in (losses, scores, rates):
        axis.set_xlabel("epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    for axis in (losses, scores):
        axis.legend(fontsize=8)
    save(figure, target)


def _draw_curve(axis: Any, rows: Sequence[Row], phase: str, name: str, **style: Any) -> None:
    axis.plot(column(rows, phase, "epoch"), column(rows, phase, name), **style)
