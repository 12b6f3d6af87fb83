"""Tables of adapt.json: what `hemafast adapt` gains. They need neither torch nor the script that measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from output import machine_line, table

PER_CLASS = (1, 5, 10, 50)
"""Labels of each class."""
SUGGESTED = 50
"""Labels that are suggested, or drawn at random."""


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Changes without labels by laboratory, curves with few labels, and what a suggestion gains."""
    result = results["adapt"]
    named = {one["name"]: one for one in result["laboratories"]}
    ways = [one["change"] for one in result["laboratories"][0]["changes"]]
    rows = [[way, *(_score_of(one["changes"][place]) for one in named.values())] for place, way in enumerate(ways)]
    curves = [
        [
            f"{count} a class",
            *(f"{one['labels'][place]['with']['mean']:.3f}" for one in named.values()),
            *_longest(one["labels"][place] for one in named.values()),
        ]
        for place, count in enumerate(PER_CLASS)
    ]
    timed = ["seconds"] * bool(_longest(named.values()))
    gains = [
        [which, *(f"{one['suggested'][which]['mean']:.3f}" for one in named.values())]
        for which in ("suggested", "random")
    ]
    said = f"`{result['command']}`, {result['run']['preset']}, {machine_line(result['machine'])}"
    return {
        "adapt_changes": table(" | ".join(["change, without labels", *named]), rows, said),
        "adapt_labels": table(
            " | ".join(["labels", *named, *timed]), curves, f"Mean of {result['seeds']} draws.{_timed(named)}"
        ),
        "adapt_suggested": table(
            " | ".join([f"{SUGGESTED} labels", *named]), gains, f"Mean of {result['seeds']} draws."
        ),
    }


def _longest(measured: Iterable[Mapping[str, Any]]) -> list[str]:
    """The longest of the seconds, if they were measured."""
    seconds = [one["seconds"] for one in measured if "seconds" in one]
    return [f"{max(seconds):.0f}"] if seconds else []


def _timed(named: Mapping[str, Mapping[str, Any]]) -> str:
    """What the column of seconds is."""
    without = _longest(named.values())
    if not without:
        return ""
    most = max(one["cells"] for one in named.values())
    told = "`hemafast adapt` as a whole, in the laboratory where it takes longest"
    return f" Seconds: {told} (at most {most:,} images); without labels {without[0]}."


def _score_of(change: Mapping[str, Any]) -> str:
    low, high = change["ci95"]
    text = f"{change['macro_f1']:.3f} ({low:.3f} to {high:.3f})"
    return f"**{text}**" if change["chosen"] else text
