"""The page of `hemafast patients`: differentials as laboratories write them, with the cells behind them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hemafast.pages import render
from hemafast.patients.cells import Cells
from hemafast.pictures import embedded_pixels

_CELLS = 8  # pictures of a kind for each patient
_PICTURED = 100  # patients with pictures: more make a page of more than 20 MB


def patients_page(result: dict[str, Any], cells: Cells, attention: npt.NDArray[np.float64] | None) -> str:
    """The page as HTML; it needs no other file and no network.

    Args:
        result: what was counted, the content of patients.json.
        cells: the cells, with pictures if they were read from images.
        attention: (images,), of a head; nan for images without any, None without a head.

    Returns:
        The text of the page.
    """
    pictured = [one["patient"] for one in result["patients"][:_PICTURED]] if cells.tiles is not None else []
    rows = {str(name): part for name, part in cells.table.groupby("patient") if name in set(pictured)}
    return render(
        "patients/patients.html.j2",
        **result,
        unsure={name: _unsure(cells, part) for name, part in rows.items()},
        attended={} if attention is None else {name: _attended(cells, part, attention) for name, part in rows.items()},
    )


def _unsure(cells: Cells, rows: pd.DataFrame) -> list[dict[str, str]]:
    """The least certain calls."""
    some = rows[(rows["error"] == "") & (rows["confidence"] < cells.threshold)].nsmallest(_CELLS, "confidence")
    return [_figure(cells, int(at), f"{row.predicted or 'no call'} {row.confidence:.2f}") for at, row in _each(some)]


def _attended(cells: Cells, rows: pd.DataFrame, attention: npt.NDArray[np.float64]) -> list[dict[str, str]]:
    """The cells that count most for the label."""
    weights = pd.Series(attention[rows.index], rows.index).dropna().nlargest(_CELLS)
    some = rows.loc[weights.index]
    return [_figure(cells, int(at), f"{weights[at]:.1%} {row.predicted}") for at, row in _each(some)]


def _each(rows: pd.DataFrame) -> Any:
    return zip(rows.index, rows.itertuples(index=False), strict=True)


def _figure(cells: Cells, place: int, caption: str) -> dict[str, str]:
    assert cells.tiles is not None
    tile = cells.tiles[place]
    return {
        "picture": embedded_pixels(tile, tile.shape[0]),
        "image": str(cells.table["image"].iloc[place]),
        "caption": caption,
    }
