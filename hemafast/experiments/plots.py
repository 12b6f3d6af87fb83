"""Pictures that compare several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from hemafast.pictures import TRAIN_COLOUR, VAL_COLOUR, hex_of, ink_on, save, short, subplots
from hemafast.words import counted

_NO_SCORE = "#dddddd"  # ground of cells without a score
_BAR = 0.5  # thickness, as a share of the distance between two bars

_OPTUNA_SAYS = {
    "Objective Value": "macro-F1",
    "Best Value": "best so far",
    "Trial": "trial",
    "Hyperparameter": "setting",
    "Hyperparameter Importance": "share of the importance",
}

Target = Path | IO[bytes]


def draw_matrix(result: Mapping[str, Any]) -> Any:
    """A heat map of macro-F1 over shared classes: a row per model, a column per test domain, and the unseen mean."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    rows, columns = ([part["name"] for part in result[side]] for side in ("trained", "tested"))
    values = np.full((len(rows), len(columns) + 1), np.nan)
    colours = ScalarMappable(Normalize(0, 1), "Blues")
    figure, (axis,) = subplots(1, width=4.1 + 1.7 * len(columns), height=1.9 + 0.9 * len(rows), columns=1)
    axis.set_facecolor(_NO_SCORE)
    for cell in result["cells"]:
        shared, place = cell["shared"], (rows.index(cell["trained_on"]), columns.index(cell["tested_on"]))
        said = f"{counted(len(shared['classes']), 'class')}, {counted(shared['images'], 'image')}"
        values[place] = _write_cell(axis, colours, place, shared["macro_f1"], said)
    for mean in result["unseen"]:
        place = rows.index(mean["trained_on"]), len(columns)
        values[place] = _write_cell(axis, colours, place, mean["macro_f1"], f"mean of {len(mean['domains'])}")
    axis.imshow(values, cmap=colours.cmap, norm=colours.norm, aspect="auto")
    axis.set_xticks(range(len(columns) + 1), [*map(short, columns), "unseen domains"], parse_math=False)
    axis.set_yticks(range(len(rows)), map(short, rows), parse_math=False)
    axis.set_xlabel("tested on validation images of")
    axis.set_ylabel("trained on")
    axis.set_title("macro-F1 over shared classes, 95 % interval", fontsize=10)
    return figure


def _write_cell(axis: Any, colours: Any, place: tuple[int, int], score: Mapping[str, Any], said: str) -> float:
    """Write a score into a cell, and return it; nan for none."""
    value, (low, high) = score["value"], score["ci95"]
    interval = "" if low is None else f"{low:.3f} to {high:.3f}\n"
    text = "no shared class" if value is None else f"{value:.3f}\n{interval}{said}"
    colour = ink_on(_NO_SCORE if value is None else hex_of(colours, value))
    axis.text(place[1], place[0], text, ha="center", va="center", fontsize=9, color=colour)
    return float("nan") if value is None else float(value)


def plain(figure: Any) -> None:
    """Give a figure of Optuna our words, our numbers of trials, and the colours that `pictures.on_page` replaces."""
    from matplotlib.text import Text

    figure.suptitle("")
    for axis in figure.axes:
        _plain_axis(axis)
    for text in figure.findobj(Text):
        text.set(color="black", text=_OPTUNA_SAYS.get(text.get_text(), text.get_text()))


def _plain_axis(axis: Any) -> None:
    for side in ("left", "center", "right"):
        axis.set_title("", loc=side)
    axis.set(facecolor="none", axisbelow=True)
    axis.tick_params(which="both", colors="black")
    axis.spines[:].set_color("black")
    if axis.get_label() != "<colorbar>":
        axis.grid(visible=True, color="0.6", alpha=0.3)
    for side in (axis.xaxis, axis.yaxis):
        if side.get_label_text() == "Trial":
            _count_from_one(side)
    legend, lines = axis.get_legend(), list(axis.lines)
    if legend and len(legend.get_texts()) == 1:
        legend.remove()
    elif legend:
        legend.get_frame().set_visible(False)
        lines += legend.get_lines()
    for line in lines:
        line.set(color=VAL_COLOUR, alpha=1)


def _count_from_one(side: Any) -> None:
    """Ticks at whole trials; Optuna counts them from 0, and we from 1."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    side.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    side.set_major_formatter(FuncFormatter(lambda trial, _: f"{trial + 1:.0f}"))


def plot_summary(target: Target, rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Bars of macro-F1 with intervals, and a mark for each published score; experiments not run have no bar."""
    figure, (axis,) = subplots(1, width=8.0, height=1.6 + 0.6 * len(rows), columns=1)
    for place, row in enumerate(rows):
        _draw_bar(axis, place, row)
    published = [row["published"] for row in rows]
    places = [place + _BAR / 2 for place in range(len(rows))]  # at the lower edge, clear of the interval
    axis.plot(published, places, linestyle="", marker="D", color=VAL_COLOUR, label="published")
    axis.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 1.14)  # room for the numbers
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel("macro-F1 on validation images of the best epoch, 95 % interval")
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(title, fontsize=10, parse_math=False)
    axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.2), frameon=False)
    save(figure, target)


def _draw_bar(axis: Any, place: int, row: Mapping[str, Any]) -> None:
    score = row["best_val_f1"]
    if score is None:
        axis.text(0.01, place, row["status"], va="center", fontsize=9)
        return
    low, high = row["ci95"]
    axis.barh(place, score, _BAR, color=TRAIN_COLOUR, alpha=0.85)
    ends = [[max(score - low, 0)], [max(high - score, 0)]]  # the score may lie outside its bootstrap interval
    axis.errorbar(score, place, xerr=ends, color="black", capsize=3)
    axis.text(high + 0.015, place, f"{score:.4f}", va="center", fontsize=9)
