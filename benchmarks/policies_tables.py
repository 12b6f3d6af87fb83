"""The table of policies.json: images per second under each policy. It needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from output import machine_line, ranged, table, times


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The loader under every policy, by size of the views."""
    result = results["policies"]
    rows = [
        [size, name, ranged(found["images_per_second"]), ranged(found["images_per_cpu_second"]), times(ratio)]
        for size, measured in result["image_sizes"].items()
        for name, found in measured.items()
        if (ratio := found["ratio_to_basic"])
    ]
    note = (
        f"`{result['command']}`, packed squares of {result['data']['images']:,} real images of "
        f"{' and '.join(result['data']['domains'])}, batches of {result['batch_size']}, {result['threads']} threads, "
        f"interleaved rounds, median (min to max). {machine_line(result['machine'])}"
    )
    return {"policy_speed": table("px | policy | images/s | images per CPU-second | of `basic`", rows, note)}
