"""Tables of scale.json: what nuclei and red cells, and then predicted classes, say of the scale. They need no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from output import table

OF_IMAGES = 30
"""Images of a random sample."""


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Known and estimated scales by domain."""
    result = results["scale"]
    domains, command = result["domains"], result["command"]
    drawn = next(iter(domains.values()))["samples"]["drawn"]
    note = (
        f"um/px. Samples: {drawn} random draws of {OF_IMAGES} images, least to most. Classes: the "
        f"estimates from one class alone, least to most. `{command}`."
    )
    columns = ["known", "estimated from all (interval)", "nuclei found in", "red cells alone"]
    header = " | ".join(["images of", *columns, f"samples of {OF_IMAGES}", "single classes"])
    rows = [_row(name, one) for name, one in domains.items()]
    return {"scale": table(header, rows, note), **_table_with_classes(domains, command)}


def _table_with_classes(domains: Mapping[str, Any], command: str) -> dict[str, str]:
    """The same with predicted classes; nothing if no run was given."""
    note = (
        "Each by nuclei and red cells, then with predicted classes; of images that the model was not trained on. "
        f"Errors of random samples of {OF_IMAGES} images and of sets of one class: root mean square, against the scale "
        "known or given; in brackets, of how many samples the interval holds it. Macro-F1 at that scale, then at the "
        f"two estimates. `{command}`."
    )
    rows = [_row_with_classes(name, one["with_classes"]) for name, one in domains.items() if "with_classes" in one]
    header = "images of | known | estimated | error of samples | error of single classes | macro-F1"
    return {"scale_with_classes": table(header, rows, note)} if rows else {}


def _row_with_classes(name: str, second: Mapping[str, Any]) -> Sequence[str]:
    both, known = (second["first"], second), second["known"]
    scores = ["unknown" if score is None else f"{score:.3f}" for score in second["macro_f1"].values()]
    return [
        name,
        "unknown" if known is None else f"{known:.4g}",
        _then([f"{one['all']['um_per_pixel']:.3g}" for one in both]),
        "" if known is None else _then([_error_of_samples(one["samples"]) for one in both]),
        "" if known is None else _then([_error_of_classes(one["by_class"].values(), known) for one in both]),
        f"{scores[0]}; {_then(scores[1:])}",
    ]


def _then(values: Sequence[str]) -> str:
    return f"{values[0]}, **{values[1]}**"


def _error_of_samples(samples: Mapping[str, Any]) -> str:
    return f"{samples['rms']:.1%} ({samples['held']} of {samples['drawn']})"


def _error_of_classes(estimates: Iterable[Mapping[str, Any]], known: float) -> str:
    error = root_mean_square([one["um_per_pixel"] for one in estimates if one["um_per_pixel"] is not None], known)
    return "none" if error is None else f"{error:.1%}"


def _row(name: str, one: Mapping[str, Any]) -> Sequence[str]:
    whole, samples = one["all"], one["samples"]
    alone = [found["um_per_pixel"] for found in one["by_class"].values() if found["um_per_pixel"] is not None]
    near = "" if samples["near"] is None else f"; {samples['near']} of {samples['drawn']} within 20 %"
    return [
        name,
        "unknown" if one["known"] is None else f"{one['known']:.4g}",
        f"**{whole['um_per_pixel']:.3g}** ({whole['low']:.3g} to {whole['high']:.3g})",
        f"{whole['nuclei']:,} of {whole['images']:,}",
        f"{whole['by_red_cells']:.3g}, by {whole['red_cells']:,}" if whole["red_cells"] else "too few",
        f"{samples['least']:.3g} to {samples['most']:.3g}{near}",
        f"{min(alone):.3g} to {max(alone):.3g}",
    ]


def root_mean_square(scales: Sequence[float], known: float) -> float | None:
    """Root mean square error, as a share."""
    return float(np.sqrt(np.square(np.array(scales) / known - 1).mean())) if scales else None
