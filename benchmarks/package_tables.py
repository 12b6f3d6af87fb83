"""Tables of the package itself: `hemafast bench`, presets, augmentation policies, and what prepare does with images."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from output import machine_line, ranged, table, times

from hemafast.data import augment
from hemafast.preparation.images import kinds
from hemafast.presets import PRESETS

SHOWN = ("augment, basic", "loader, files", "loader, torchvision", "step", "step, plain PyTorch", "end to end")
"""Stations in the short table."""
PURPOSES = {
    "seed": "the default: the reference's augmentation",
    "basic": "cells, which have no preferred orientation or position",
    "strong": "much data, long training",
    "lineage": "stains that vary, chromatin that stays readable",
    "robust": "images of other laboratories: other stains, cameras and backgrounds",
    "none": "validation",
}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Tables of the package by name."""
    return {
        "bench": _bench(results["bench"]),
        "bench_short": _bench_short(results["bench"]),
        "presets": _presets(),
        "augmentation": _augmentation(),
        "policies": table(
            "kind | what happens | what it is",
            [
                *([kind, "convert", meaning] for kind, meaning in kinds.CONVERTED_KINDS.items()),
                *([kind, "quarantine", meaning] for kind, meaning in kinds.QUARANTINED_KINDS.items()),
            ],
        ),
    }


def _bench(result: Mapping[str, Any]) -> str:
    """All stations of `hemafast bench`, and the headroom."""
    rows = []
    for name, station in result["stations"].items():
        unit = "" if station["unit"] == "images" else f" {station['unit']}"
        waits = station["data_wait_share"]["median"]
        rates = [ranged(station["images_per_second"]) + unit, ranged(station["images_per_cpu_second"])]
        faults = f"{station['page_faults_a_step']['median']:,.0f}"
        rows.append([name, *rates, faults, f"{waits:.1%}" if waits else ""])
    header = "station | images/s | images per CPU-second | page faults a step | waits for data"
    return table(header, rows, _headroom(result), _circumstances(result), f"> {result['bound_by']}")


def _headroom(result: Mapping[str, Any]) -> str:
    room, costs, whole = result["headroom"], result["costs"], result["stations"]["end to end"]
    flops, moved = costs["training_flops"] / 1e9, costs["training_bytes"] / 1e6
    products, copies = (result[name]["median"] / 1e9 for name in ("matrix_product_flops", "memory_copy_bytes"))
    return (
        f"Headroom in images/s: end to end {room['end_to_end']:,.1f}; if data were free "
        f"{room['step_with_free_data']:,.1f}; if the step were free {room['data_with_free_step']:,.0f}; decoding "
        f"alone {room['decode']:,.0f}; arithmetic alone {room['arithmetic']:,.1f} "
        f"({flops:,.2f} GFLOP an image, a matrix product at {products:,.0f} GFLOP/s); memory alone "
        f"{room['memory']:,.1f} ({moved:,.0f} MB an image if nothing is fused, a copy at {copies:,.0f} GB/s). "
        f"Peak memory of the process that trains: {whole['peak_memory'] / 2**20:,.0f} MiB."
    )


def _bench_short(result: Mapping[str, Any]) -> str:
    """Stations that have a plain counterpart, and what limits training."""
    rows = []
    for name in SHOWN:
        station, ratio = result["stations"][name], result["ratios"].get(name)
        rates = [ranged(station[rate]) for rate in ("images_per_second", "images_per_cpu_second")]
        rows.append([name, *rates, times(ratio, 1) if ratio else ""])
    header = "station | images/s | images per CPU-second | against plain PyTorch"
    return table(header, rows, _circumstances(result), f"> {result['bound_by']}")


def _circumstances(result: Mapping[str, Any]) -> str:
    chosen = result["bench"]
    return (
        f"`hemafast bench` ({chosen['model']}, {chosen['image_size']} px, batch {chosen['batch_size']}; loaders: "
        f"batch {chosen['loader_batch_size']}), real images of {' and '.join(result['data']['domains'])}, "
        f"{result['rounds']} interleaved rounds, median (min to max). {machine_line(result['machine'])}"
    )


def _presets() -> str:
    """The docstrings of the presets."""
    rows = []
    for name, preset in PRESETS.items():
        first, _, rest = inspect.cleandoc(preset.__doc__ or "").partition("\n")
        lines = dict(line.split(": ", 1) for line in rest.strip().splitlines())
        rows.append([f"`{name}`", first, lines["Time"], lines["Score"]])
    return table("preset | what it is | time | macro-F1", rows)


def _augmentation() -> str:
    """What each policy draws."""
    rows = [[f"`{name}`", PURPOSES[name], _draws(policy)] for name, policy in augment.POLICIES.items()]
    return table("policy | for | what it draws", rows)


def _draws(policy: augment.Policy) -> str:
    """The fields of a policy that are not at their defaults, in words."""
    symmetries = {"mirror": "left and right swapped half the time", "eight": "one of the eight flips and quarter turns"}
    low, high = policy.crop_area or (0, 0)
    said = {
        f"a window of {100 * low:.0f} to {100 * high:.0f} % of the square, scaled to the view": policy.crop_area,
        "a window of 7/8 of the side, anywhere in the square": policy.shift,
        f"{100 * policy.zoom:.0f} % larger or smaller": policy.zoom,
        symmetries.get(policy.symmetry, ""): policy.symmetry != "none",
        f"up to {policy.rotation:g} degrees of rotation": policy.rotation,
        f"RandAugment({policy.randaugment_ops}, {policy.randaugment_magnitude})": policy.randaugment_ops,
        f"stains by {100 * policy.stain:.0f} %": policy.stain,
        f"another background in {100 * policy.background:.0f} % of the images": policy.background,
        f"up to {100 * policy.crosstalk:.0f} % of each channel's density in another channel": policy.crosstalk,
        f"{100 * policy.grey:.0f} % of the images without colour": policy.grey,
        f"optical density by {100 * policy.density:.0f} %": policy.density,
        f"contrast of each channel by up to e^{policy.contrast:g}": policy.contrast,
        f"brightness of each channel by {100 * policy.brightness:.0f} % of the range": policy.brightness,
        f"a blur of up to {policy.blur:g} px in half of the images": policy.blur,
        f"a rectangle erased in {100 * policy.erase:.0f} % of the images": policy.erase,
    }
    return ", ".join(text for text, does in said.items() if does) or "nothing: the central window"
