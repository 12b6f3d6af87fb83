"""Steps in which convolutions do the work of the batch norms behind them, and steps in which they do not.

    python benchmarks/folding.py --json benchmarks/results/folding.json

Two processes, which differ in `Bench.fused` alone, take turns on the same batches of real images: in validation, where
all batch norms are in evaluation mode, and in training with frozen stages, where those of the stages are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from depthwise import Case, race
from output import JsonFile, machine_line, ranged, table, times, write_json

from hemafast.engine.machine import choose_machine

CASES = (
    ("training", Case("tf_efficientnet_lite0", 128, 5)),
    ("validation", Case("tf_efficientnet_lite0", 128)),
    ("validation", Case("efficientnet_b0", 224)),
    ("validation", Case("resnet18", 224)),
)
"""The first is a step of the preset `fast`, the second its validation."""


def main(
    json_file: JsonFile,
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a measurement.")] = 5.0,
) -> None:
    """Race both, about a minute and a half a network on two cores."""
    from hemafast.bench.training import step, validation

    stations = {"training": step, "validation": validation}
    result: dict[str, Any] = {
        "command": f"python benchmarks/folding.py --batch-size {batch_size} --rounds {rounds} --seconds {seconds:g}",
        "machine": choose_machine(device="cpu", amp="off", compiled="off").facts,
        "batch_size": batch_size,
        "cases": [],
    }
    for kind, case in CASES:
        bench = case.bench(data, batch_size)
        benches = {side: replace(bench, fused=side == "folded") for side in ("folded", "apart")}
        result["cases"].append(
            {"step": kind, "network": case.name} | race(case.name, stations[kind], benches, rounds, seconds)
        )
        write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Steps with batch norms fused into their convolutions, and with batch norms apart."""
    result = results["folding"]
    rows = []
    for found in result["cases"]:
        rates, costs = found["images_per_second"], found["images_per_cpu_second"]
        each = f"{costs['folded']['median']:.1f} / {costs['apart']['median']:.1f}"
        sides = [ranged(rates[side]) for side in ("folded", "apart")]
        rows.append([found["step"], found["network"], *sides, times(found["ratio"]), each])
    note = f"`{result['command']}`, fp32, interleaved rounds, median (min to max). {machine_line(result['machine'])}"
    header = "step | network | fused, images/s | apart, images/s | ratio | images per CPU-second"
    return {"folding": table(header, rows, note)}


if __name__ == "__main__":
    typer.run(main)
