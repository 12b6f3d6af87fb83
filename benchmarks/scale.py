"""What nuclei say about the scale of prepared images, as if nothing else were known of it.

    python benchmarks/scale.py Acevedo/prepared Matek/prepared --json benchmarks/results/scale.json

For each domain: the estimate from all images, from the images of each class alone, and from random samples of 30
images, beside the scale that is known of it. Refuses drawn cells.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import typer
from output import JsonFile, table, write_json

import hemafast as hf
from hemafast.preparation import schema
from hemafast.preparation.images.image_checks import decode_reference, strict_decoders
from hemafast.preparation.nuclei import nucleus_diameter
from hemafast.preparation.scale import ScaleEstimate, estimate_from

SAMPLES, OF_IMAGES = 200, 30
NEAR = 0.2
"""Share by which an estimate may differ from the known scale."""


def main(
    data: Annotated[list[Path], typer.Argument(help="Prepared data sets.")],
    json_file: JsonFile,
) -> None:
    """Measure the nuclei of all images, and write what they say."""
    domains: dict[str, Any] = {}
    for folder in data:
        dataset = hf.open_dataset(folder)
        if dataset.info.drawn:
            sys.exit(f"{folder} holds drawn cells; their nuclei say nothing.")
        images = schema.accepted(dataset.table)
        with strict_decoders():
            nuclei = pd.Series([_nucleus(folder / path) for path in images["path"]], index=images.index)
        for name, rows in images.groupby("domain").groups.items():
            info = dataset.info.domains[str(name)]
            known = None if info.scale is None or info.scale.source == "estimated" else info.um_per_pixel
            domains[str(name)] = _measured(nuclei[rows], images["label"][rows], known)
    command = shlex.join(["python", "benchmarks/scale.py", *(folder.name for folder in data)])
    write_json({"command": command, "hemafast": hf.__version__, "domains": domains}, json_file)


def _nucleus(file: Path) -> tuple[int, float | None]:
    """Shorter side of an image in px, and the diameter of its nucleus."""
    pixels = decode_reference(file.read_bytes())
    return min(pixels.shape[:2]), nucleus_diameter(pixels)


def _measured(nuclei: pd.Series[Any], labels: pd.Series[str], known: float | None) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    drawn = [generator.choice(len(nuclei), min(OF_IMAGES, len(nuclei)), replace=False) for _ in range(SAMPLES)]
    samples = [one.um_per_pixel for one in (estimate_from(nuclei.iloc[rows].tolist()) for rows in drawn)]
    found = [one for one in samples if one is not None]
    return {
        "known": known,
        "all": _plain(estimate_from(nuclei.tolist())),
        "by_class": {str(name): _plain(estimate_from(own.tolist())) for name, own in nuclei.groupby(labels)},
        "samples": {
            "images": OF_IMAGES,
            "drawn": SAMPLES,
            "near": None if known is None else sum(abs(one / known - 1) <= NEAR for one in found),
            "least": min(found, default=None),
            "most": max(found, default=None),
        },
    }


def _plain(estimate: ScaleEstimate) -> dict[str, Any]:
    return {name: value for name, value in asdict(estimate).items() if name != "by_side"}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Known and estimated scales by domain."""
    result = results["scale"]
    rows = [_row(name, one) for name, one in result["domains"].items()]
    note = (
        f"um/px. Samples: {SAMPLES} random draws of {OF_IMAGES} images, least to most. Classes: the "
        f"estimates from one class alone, least to most. `{result['command']}`."
    )
    header = "images of | known | estimated from all (interval) | nuclei found in | samples of 30 | single classes"
    return {"scale": table(header, rows, note)}


def _row(name: str, one: Mapping[str, Any]) -> Sequence[str]:
    whole, samples = one["all"], one["samples"]
    alone = [found["um_per_pixel"] for found in one["by_class"].values() if found["um_per_pixel"] is not None]
    near = "" if samples["near"] is None else f"; {samples['near']} of {samples['drawn']} within 20 %"
    return [
        name,
        "unknown" if one["known"] is None else f"{one['known']:.4g}",
        f"**{whole['um_per_pixel']:.3g}** ({whole['low']:.3g} to {whole['high']:.3g})",
        f"{whole['nuclei']:,} of {whole['images']:,}",
        f"{samples['least']:.3g} to {samples['most']:.3g}{near}",
        f"{min(alone):.3g} to {max(alone):.3g}",
    ]


if __name__ == "__main__":
    typer.run(main)
