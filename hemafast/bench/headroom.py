"""What limits training on this machine, and what to try next."""

from __future__ import annotations

from typing import Any

from hemafast.bench.result import DECODE, LOADER, STEP, WHOLE

_NEARLY = 0.85  # of the slower station; above it, little is lost between the stations
_TOO_GOOD = 1.15  # of the slower station; above it, the machine was faster during one measurement than the other
_LARGE_BATCH = 128
_SMALLER = 32  # px: steps in which image sizes are usually chosen

Result = dict[str, Any]


def headroom(result: Result) -> dict[str, float]:
    """The rates of `result.Headroom`, from a result with stations, ceilings and costs."""
    rates = {name: station["images_per_second"]["median"] for name, station in result["stations"].items()}
    costs = result["costs"]
    loader = rates.get(f"augment, {result['bench'].get('policy')}", rates[LOADER])
    return {
        "end_to_end": rates[WHOLE],
        "step_with_free_data": rates[STEP],
        "data_with_free_step": loader,
        "decode": rates[DECODE],
        "arithmetic": result["matrix_product_flops"]["median"] / costs["training_flops"],
        "memory": result["memory_copy_bytes"]["median"] / costs["training_bytes"],
        "reached": rates[WHOLE] / min(rates[STEP], loader),
    }


def bound_by(result: Result) -> str:
    """One sentence: what limits training, by how much, and what to try next."""
    room = result["headroom"]
    step, data = room["step_with_free_data"], room["data_with_free_step"]
    roof = "arithmetic" if room["arithmetic"] <= room["memory"] else "memory traffic"
    limit, other = ("loader", "step") if data < step else (f"{roof} of the step", "loader")
    slower, faster = min(step, data), max(step, data)
    return (
        f"Training is bound by the {limit}: {slower:,.0f} images/s, while the {other} could do {faster / slower:,.1f}x "
        f"that. End to end reaches {room['reached']:.0%} of it. The next thing to try is {_next(result)}."
    )


def _next(result: Result) -> str:
    bench, machine, room = result["bench"], result["machine"], result["headroom"]
    on_gpu, fed = machine["device"] == "cuda", room["data_with_free_step"] >= room["step_with_free_data"]
    threads, cores = int(machine["loader threads"]), int(machine["cores"])
    size, smaller = bench["image_size"], max(bench["image_size"] * 5 // 7 // _SMALLER * _SMALLER, _SMALLER)
    advice = [
        (room["reached"] > _TOO_GOOD, "to measure again with nothing else running: end to end beats one of its parts"),
        (not fed and threads < cores, f"--threads {cores}"),
        (not fed, "a policy that costs less: the table has the rate of each"),
        (on_gpu and machine["torch.compile"] == "off", "--compile on, which fuses operations that are bound by memory"),
        (on_gpu and machine["precision"] == "fp32", "--amp auto, which halves the bytes"),
        (on_gpu and bench["batch_size"] < _LARGE_BATCH, f"--batch-size {2 * bench['batch_size']}"),
        (room["reached"] < _NEARLY and threads > 1, f"--threads {threads - 1}: loader and step share the cores"),
        (smaller < size, f"--image-size {smaller}, {(smaller / size) ** 2:.0%} of the pixels, or a smaller --model"),
    ]
    return next((said for applies, said in advice if applies), "a smaller --model")
