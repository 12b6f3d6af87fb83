"""Figures of a data set, each usable in a paper."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, domain_style, label_of, short, subplots
from hemafast.preparation.reader import PackedPixels

DPI = 200
_CELL = 0.9  # inches: side of a sample
_DISC = 40  # square points: area of a disc in the legend
_LOG_FROM = 20  # largest class over smallest; above it the axis is logarithmic

Colours = Mapping[str, npt.NDArray[Any]]


def draw_balance(counts: pd.DataFrame) -> Any:
    """Images of each class in each domain."""
    bars = {short(str(domain)): images.to_numpy() for domain, images in counts.items()}
    return _draw_bars(bars, list(counts.index), DOMAIN_COLOURS)


def draw_split(parts: Mapping[str, pd.DataFrame]) -> Any:
    """Images of each class in each part of the split, all domains together."""
    bars = {name: counts.sum(axis=1).to_numpy() for name, counts in parts.items()}
    classes = next(iter(parts.values())).index
    return _draw_bars(bars, list(classes), (TRAIN_COLOUR, VAL_COLOUR, *DOMAIN_COLOURS))


def draw_sizes(files: pd.DataFrame) -> Any:
    """Width and height of the images; the area of a disc shows the number of images."""
    figure, (axis,) = subplots(1, width=6.0, height=4.5, columns=1)
    for index, (domain, part) in enumerate(files.groupby("domain")):
        area = 30 + 600 * part["images"] / files["images"].max()
        axis.scatter(part["width"], part["height"], s=area, alpha=0.6, **domain_style(index, str(domain)))
    axis.set(xlabel="width, px", ylabel="height, px")
    axis.margins(0.25)
    axis.grid(alpha=0.3)
    for disc in _add_legend(axis).legend_handles:
        disc.set_sizes([_DISC])
    return figure


def draw_colours(means: Colours, pixels: Colours) -> Any:
    """Densities of red, green and blue pixels, densities of image brightness, and hue against saturation."""
    figure, axes = subplots(6, width=3.3, height=2.6, columns=3)
    for channel, name in enumerate(("red", "green", "blue")):
        values = {domain: colours[:, channel] for domain, colours in pixels.items()}
        _draw_densities(axes[channel], f"{name}, of pixels", values)
    brightness = {domain: colours.mean(axis=1) for domain, colours in means.items()}
    _draw_densities(axes[3], "brightness, means of images", brightness)
    _draw_hues(axes[4], means)
    axes[5].axis("off")
    handles, labels = axes[0].get_legend_handles_labels()
    axes[5].legend(handles, labels, loc="center", frameon=False)
    return figure


def draw_samples(samples: Mapping[str, Mapping[str, Sequence[int]]], packed: PackedPixels) -> Any:
    """A row of cells for each class in each domain."""
    rows = [(label, domain, chosen) for label, domains in samples.items() for domain, chosen in domains.items()]
    columns, gap = max(len(chosen) for _, _, chosen in rows), packed.size // 32
    figure, axes = subplots(len(rows), width=_CELL * columns, height=_CELL + 0.15, columns=1)
    for axis, (label, domain, chosen) in zip(axes, rows, strict=True):
        cells = [np.pad(packed[row], ((0, 0), (0, gap), (0, 0)), constant_values=255) for row in chosen]
        absent = [np.full_like(cells[0], 255)] * (columns - len(cells))
        axis.imshow(np.concatenate([*cells, *absent], axis=1))
        axis.axis("off")
        axis.set_title(f"{short(label)}, {short(domain)}", fontsize=6, loc="left", pad=2, parse_math=False)
    return figure


def _draw_bars(bars: Mapping[str, npt.NDArray[Any]], names: Sequence[str], colours: Sequence[str]) -> Any:
    """Horizontal bars in groups, each with its number."""
    thickness = 0.8 / len(bars)
    figure, (axis,) = subplots(1, width=7.5, height=1.2 + 0.17 * len(names) * (len(bars) + 1), columns=1)
    values = np.stack(list(bars.values()))
    smallest = values[values > 0].min(initial=1)
    for index, (name, lengths) in enumerate(bars.items()):
        places = np.arange(len(names)) + (index - (len(bars) - 1) / 2) * thickness
        drawn = axis.barh(places, lengths, thickness, color=colours[index % len(colours)], label=label_of(name))
        axis.bar_label(drawn, labels=[f"{length:,}" for length in lengths], padding=2, fontsize=7)
    axis.set_yticks(range(len(names)), [short(name) for name in names], fontsize=8, parse_math=False)
    axis.invert_yaxis()
    if values.max() > _LOG_FROM * smallest:
        axis.set(xscale="log", xlim=(0.5, values.max() * 3), xlabel="images, logarithmic")
    else:
        axis.set(xlim=(None, max(1, values.max()) * 1.12), xlabel="images")
    axis.grid(axis="x", alpha=0.3)
    _add_legend(axis)
    return figure


def _draw_densities(axis: Any, title: str, values: Colours) -> None:
    for index, (domain, numbers) in enumerate(values.items()):
        style = domain_style(index, domain)
        axis.hist(numbers, np.arange(0, 257, 4), density=True, histtype="step", linewidth=1.5, **style)
    axis.set(title=title, yticks=[], xlim=(0, 256))
    axis.grid(alpha=0.3)


def _draw_hues(axis: Any, means: Colours) -> None:
    for index, (domain, colours) in enumerate(means.items()):
        chosen = colours[:: max(1, len(colours) // 1000)] / 255
        points = np.array([colorsys.rgb_to_hsv(*colour) for colour in chosen])
        hues = (points[:, 0] * 360 + 180) % 360 - 180  # stained cells are pink and violet: cut the circle opposite red
        axis.scatter(hues, points[:, 1], s=4, alpha=0.5, rasterized=True, **domain_style(index, domain))
    axis.set(title="means of images", xlabel="hue, degrees from red", ylabel="saturation")
    axis.grid(alpha=0.3)


def _add_legend(axis: Any) -> Any:
    return axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.12), ncols=4, frameon=False)
