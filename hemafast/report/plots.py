"""Figures on the page: training curves and reliability diagrams, each as wide as a phone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from hemafast.engine.journal import Row, column, measured
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, domain_style, label_of, subplots

_MARKERS = "osD^vPX*"
_WIDTH, _HEIGHT = 3.65, 3.1  # inches: 350 px on a page, so that letters keep their size on a phone


def curve_figures(rows: Sequence[Row]) -> list[Any]:
    """Loss, macro-F1 and learning rate by epoch, a figure each, from the rows of a training log.

    A probe has no learning rate, and no figure of it.
    """
    loss, scores, rate = (_panel(title) for title in ("loss", "macro-F1", "learning rate at the end of the epoch"))
    for axis, name in ((loss, "loss"), (scores, "f1_macro")):
        _draw_curve(axis, rows, "train", name, color=TRAIN_COLOUR, marker="o", label="training")
        _draw_curve(axis, rows, "val", name, color=VAL_COLOUR, marker="s", label="validation")
    prefix = "f1_macro_"
    domains = dict.fromkeys(name for row in rows for name in row if row["phase"] == "val" and name.startswith(prefix))
    for index, name in enumerate(domains):
        style = domain_style(index, name.removeprefix(prefix))
        _draw_curve(scores, rows, "val", name, linestyle="--", marker=".", **style)
    _draw_curve(rate, rows, "train", "lr", color=TRAIN_COLOUR, marker="o")
    for axis in (loss, scores, rate):
        _count_epochs(axis)
    for axis in (loss, scores):
        axis.legend(fontsize=8)
    drawn = [loss, scores, rate] if measured(rows, "train", "lr") else [loss, scores]
    return [axis.figure for axis in drawn]


def validation_figures(runs: Mapping[str, Sequence[Row]]) -> list[Any]:
    """The validation macro-F1 of several runs by epoch, and the same by seconds."""
    title = "macro-F1 on validation images"
    epochs, seconds = _panel(title), _panel(title)
    colours = cycle((TRAIN_COLOUR, VAL_COLOUR, *DOMAIN_COLOURS))
    for (name, rows), colour, marker in zip(runs.items(), colours, cycle(_MARKERS), strict=False):
        scores = column(rows, "val", "f1_macro")
        spent = np.cumsum(column(rows, "train", "seconds")[: len(scores)]) + np.cumsum(column(rows, "val", "seconds"))
        for axis, places in ((epochs, column(rows, "val", "epoch")), (seconds, spent)):
            axis.plot(places, scores, color=colour, marker=marker, markersize=4, label=label_of(name))
    _count_epochs(epochs)
    seconds.set_xlabel("seconds, validation included")
    epochs.legend(fontsize=8)
    return [epochs.figure, seconds.figure]


def reliability_figures(calibrated: Mapping[str, Any]) -> list[Any]:
    """Reliability before and after calibration, with Wilson's intervals.

    `calibrated` is the entry of that name in the scores of a set of images.
    """
    colours = {"before": VAL_COLOUR, "after": TRAIN_COLOUR}
    return [_reliability(when, calibrated[when], colour) for when, colour in colours.items()]


def _reliability(when: str, found: Mapping[str, Any], colour: str) -> Any:
    points, error = found["reliability"], found["ece"]
    axis = _panel(f"{when} calibration" + ("" if error is None else f": error {error:.3f}"))
    confidence = np.array([point["confidence"] for point in points])
    accuracy = np.array([point["accuracy"] for point in points])
    ends = np.array([point["ci95"] for point in points]).reshape(-1, 2)
    axis.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1)
    errors = np.maximum(np.abs(ends.T - accuracy), 0)
    axis.errorbar(confidence, accuracy, yerr=errors, color=colour, marker="o", markersize=4, linewidth=1, capsize=2)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of right answers", aspect="equal")
    return axis.figure


def _panel(title: str) -> Any:
    """The axes of a new figure."""
    _, (axis,) = subplots(1, width=_WIDTH, height=_HEIGHT, columns=1)
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    return axis


def _count_epochs(axis: Any) -> None:
    axis.set_xlabel("epoch")
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def _draw_curve(axis: Any, rows: Sequence[Row], phase: str, name: str, **style: Any) -> None:
    axis.plot(column(rows, phase, "epoch"), column(rows, phase, name), **style)
