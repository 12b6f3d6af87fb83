"""The table of map_page.json. It needs neither a browser nor the script that measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from output import machine_line, table

_DEEDS = {
    "open": "open the page",
    "hover": "move the pointer from cell to cell",
    "zoom": "zoom one step",
    "move": "move the map, a frame",
    "select": "drag a region, a frame",
    "release": "let go: the region is found and 60 of its cells are shown",
    "save": "save the region as csv",
    "hide": "hide a class",
    "colour": "colour by something else",
}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What a map of many cells weighs, and how long a browser needs for a frame of it."""
    result = results["map_page"]
    made = (
        f"{result['cells']:,} cells ({result['different']:,} different ones, repeated with noise), "
        f"{result['dimensions']:,} features: UMAP takes {result['umap_s']:.0f} s of a core, writing the page "
        f"{result['writing_s']:.0f} s; the page is {result['megabytes']:.0f} MB."
    )
    browser = (
        "Chromium without a graphics card, milliseconds of the processor: the page's own thread, mean (worst frame)."
    )
    rows = [[said, *(_spent(found[deed]) for found in result["browser"].values())] for deed, said in _DEEDS.items()]
    where = f"`{result['command']}`, beside other work. {machine_line(result['machine'])}"
    return {"map_page": table("what is done | 1,440 px | 390 px", rows, f"{made} {browser} {where}")}


def _spent(found: Mapping[str, float]) -> str:
    mean, worst = (f"{found[name]:.0f}" for name in ("page", "worst"))
    return f"{mean} ms" if mean == worst else f"{mean} ({worst}) ms"
