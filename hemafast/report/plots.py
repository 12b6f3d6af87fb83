"""Pictures on the page: training curves and reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import IO, Any

import numpy as np

from hemafast.engine.journal import Row, column
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, domain_style, label_of, save, subplots

_MARKERS = "osD^vPX*"


def plot_curves(target: Path | IO[bytes], rows: Sequence[Row]) -> None:
    """Write a PNG of loss, macro-F1 and learning rate by epoch, from the rows of a training log."""
    figure, (losses, scores, rates) = subplots(3, width=4.6, height=3.4, columns=3)
    for axis, name, title in ((losses, "loss", "loss"), (scores, "f1_macro", "macro-F1")):
        _draw_curve(axis, rows, "train", name, color=TRAIN_COLOUR, marker="o", label="training")
        _draw_curve(axis, rows, "val", name, color=VAL_COLOUR, marker="s", label="validation")
        axis.set_title(title)
    prefix = "f1_macro_"
    domains = dict.fromkeys(name for row in rows for name in row if row["phase"] == "val" and name.startswith(prefix))
    for index, name in enumerate(domains):
        _draw_curve(scores, rows, "val", name, linestyle="--", **domain_style(index, name.removeprefix(prefix)))
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


def plot_validation(target: Path | IO[bytes], runs: Mapping[str, Sequence[Row]]) -> None:
    """Write a PNG of the validation macro-F1 of several runs, by epoch and by seconds."""
    figure, (epochs, seconds) = subplots(2, width=5.6, height=3.8, columns=2)
    colours = cycle((TRAIN_COLOUR, VAL_COLOUR, *DOMAIN_COLOURS))
    for (name, rows), colour, marker in zip(runs.items(), colours, cycle(_MARKERS), strict=False):
        scores = column(rows, "val", "f1_macro")
        spent = np.cumsum(column(rows, "train", "seconds")[: len(scores)]) + np.cumsum(column(rows, "val", "seconds"))
        for axis, places in ((epochs, column(rows, "val", "epoch")), (seconds, spent)):
            axis.plot(places, scores, color=colour, marker=marker, markersize=4, label=label_of(name))
    epochs.xaxis.get_major_locator().set_params(integer=True)
    for axis, name in ((epochs, "epoch"), (seconds, "seconds, validation included")):
        axis.set(title="macro-F1 on validation", xlabel=name)
        axis.grid(alpha=0.3)
    epochs.legend(fontsize=7)
    save(figure, target)


def plot_reliability(target: Path | IO[bytes], calibrated: Mapping[str, Any]) -> None:
    """Write a PNG of reliability diagrams before and after calibration, with Wilson's intervals.

    `calibrated` is the entry of that name in the scores of a set of images.
    """
    figure, axes = subplots(2, width=3.9, height=3.9, columns=2)
    for axis, when, colour in zip(axes, ("before", "after"), (VAL_COLOUR, TRAIN_COLOUR), strict=True):
        points = calibrated[when]["reliability"]
        confidence = np.array([point["confidence"] for point in points])
        accuracy = np.array([point["accuracy"] for point in points])
        ends = np.array([point["ci95"] for point in points]).reshape(-1, 2)
        axis.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
        errors = np.maximum(np.abs(ends.T - accuracy), 0)
        axis.errorbar(confidence, accuracy, yerr=errors, color=colour, marker="o", markersize=4, linewidth=1, capsize=2)
        error = calibrated[when]["ece"]
        axis.set_title(f"{when} calibration" + ("" if error is None else f": error {error:.3f}"), fontsize=10)
        axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right answers", aspect="equal")
        axis.grid(alpha=0.3)
    save(figure, target)
