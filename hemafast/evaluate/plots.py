"""The picture that an evaluation leaves: confusion matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from hemafast.metrics import Confusion, macro_f1
from hemafast.pictures import draw_confusion, save, subplots


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
