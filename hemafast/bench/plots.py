"""The roofline: the step beside the ceilings of this machine."""

from __future__ import annotations

from typing import Any

import numpy as np

from hemafast.bench.result import STEP, WHOLE
from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR, subplots

_AROUND = 30.0  # margin of the picture, as a factor


def roofline_figure(result: dict[str, Any]) -> Any:
    """A figure of FLOP/s against FLOP per byte, both logarithmic (S. Williams et al., CACM 52(4), 2009).

    The roof is measured. Bytes are those of each operation by itself, so fused operations may lie above the roof.
    """
    peak, band = (result[name]["median"] for name in ("matrix_product_flops", "memory_copy_bytes"))
    costs, chosen = result["costs"], result["bench"]
    intensity = costs["training_flops"] / costs["training_bytes"]
    figure, (axis,) = subplots(1, width=6.4, height=4.2, columns=1)
    ridge = peak / band
    ends = np.geomspace(min(intensity, ridge) / _AROUND, max(intensity, ridge) * _AROUND, 200)
    axis.plot(ends, np.minimum(ends * band, peak), color="black", linewidth=1.2)
    axis.annotate(f"matrix product: {peak / 1e9:,.0f} GFLOP/s", (ends[-1], peak), ha="right", va="bottom")
    axis.annotate(f"memory copy: {band / 1e9:,.0f} GB/s", (ends[20], ends[20] * band), ha="left", va="top")
    points = {
        "step": (STEP, TRAIN_COLOUR, "o", 1),
        "forward": ("forward", DOMAIN_COLOURS[0], "s", 0),
        "end to end": (WHOLE, VAL_COLOUR, "D", 1),
    }
    for label, (station, colour, marker, training) in points.items():
        rate = result["stations"][station]["images_per_second"]["median"]
        flops, moved = (costs[f"{'training' if training else 'forward'}_{what}"] for what in ("flops", "bytes"))
        named = f"{label}: {rate:,.0f} images/s"
        axis.scatter([flops / moved], [rate * flops], color=colour, marker=marker, zorder=3, label=named)
    axis.set(xscale="log", yscale="log", xlabel="FLOP per byte", ylabel="FLOP/s")
    axis.set_title(f"{chosen['model']}, {chosen['image_size']} px, batch {chosen['batch_size']}", parse_math=False)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    return figure
