"""The table of unlike.json: likeness and sets of classes. It needs neither torch nor the script that measures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from output import machine_line, table

_PARTS = ("likeness", "colour", "content")


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Likeness, and sets of classes, at home, elsewhere and on non-cells."""
    result = results["unlike"]
    rows = [_row("home, held out", result["home"])]
    rows += [_row(name, found) for group in ("elsewhere", "non_cells") for name, found in result[group].items()]
    note = (
        f"{result['run']['backbone']}, trained on {' and '.join(result['run']['trained_on'])}; likeness fitted on "
        f"{result['fitted_on']} images. `{result['command']}`. {machine_line(result['machine'])}"
    )
    header = (
        "images | number | unlike | AUROC | in colour | in content | accuracy | sets hold the class | classes in a set"
    )
    return {"unlike": table(header, rows, note)}


def _row(name: str, found: Mapping[str, Any]) -> list[str]:
    likeness, sets = found["likeness"], found.get("sets")
    share = f"{likeness['share']:.1%} ({likeness['ci95'][0]:.1%} to {likeness['ci95'][1]:.1%})"
    apart = [f"{found['auroc'][part]['value']:.3f}" if "auroc" in found else "" for part in _PARTS]
    accuracy = found.get("accuracy")
    return [
        name,
        str(likeness["images"]),
        share,
        *apart,
        "" if accuracy is None else f"{accuracy:.3f}",
        f"{sets['coverage']:.1%} ({sets['ci95'][0]:.1%} to {sets['ci95'][1]:.1%})" if sets else "",
        f"{sets['mean_size']:.2f}" if sets else "",
    ]
