"""Images per second of the loader under each policy, and under each change of `robust` alone, in one interleaved run.

    python benchmarks/policies.py --data Source/prepared --json benchmarks/results/policies.json

All loaders read packed squares, live in one process and take turns, round after round. A ratio is that of the images/s
to those of `basic`, the policy that `robust` adds its changes to, in the same round.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from output import JsonFileOrNone, print_json

from hemafast.bench.feeding import load
from hemafast.bench.result import spread
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Round, Worker
from hemafast.data.augment import POLICIES, Policy

BASIC = "basic"
SIZES = (128, 224)
_CHANGES = ("background", "crosstalk", "grey", "density", "contrast", "brightness", "blur")


def sides() -> dict[str, Policy]:
    """What takes turns, by name: all policies, and `basic` with one change of `robust` each."""
    robust = POLICIES["robust"]
    alone = {
        f"{BASIC} and {name}": replace(POLICIES[BASIC], **{name: getattr(robust, name)})
        for name in _CHANGES
        if getattr(robust, name)
    }
    return POLICIES | alone


def race(bench: Bench, rounds: int, seconds: float) -> dict[str, list[Round]]:
    """Interleaved measurements of every side, after a warm-up of each."""
    makes = {name: partial(load, "packed", policy) for name, policy in sides().items()}
    measured: dict[str, list[Round]] = {name: [] for name in makes}
    with Worker(makes, bench, reads_ahead=frozenset(makes)) as worker:
        for number in range(-1, rounds):
            for name in makes:
                found = worker.run(name, seconds)
                if number >= 0:  # the first round compiles and fills caches
                    measured[name].append(found)
                    typer.echo(f"{bench.settings.image_size} px, {name}: {_rate(found):,.0f} images/s", err=True)
    return measured


def summary(measured: dict[str, list[Round]]) -> dict[str, Any]:
    """Rates of every side, and their ratios to `basic`, paired by round."""
    return {
        name: {
            "images_per_second": spread([_rate(one) for one in found]),
            "images_per_cpu_second": spread([one.images / one.cpu_seconds for one in found]),
            "ratio_to_basic": spread([_rate(a) / _rate(b) for a, b in zip(found, measured[BASIC], strict=True)]),
        }
        for name, found in measured.items()
    }


def _rate(one: Round) -> float:
    return one.images / one.seconds


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    json_file: JsonFileOrNone = None,
    image_size: Annotated[
        list[int] | None, typer.Option(help="Sides of the views in pixels; may be repeated.", show_default="128, 224")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Least length of a measurement.")] = 2.0,
    threads: Annotated[int | None, typer.Option(min=1, help="Of the loader.", show_default="the cores")] = None,
) -> None:
    """Measure the loader under every policy; about four minutes on two cores."""
    sizes: dict[str, Any] = {}
    for size in image_size or SIZES:
        bench = Bench(bench_settings(data=data, image_size=size, threads=threads))
        sizes[str(size)] = summary(race(bench, rounds, seconds))
    machine, info = bench.machine(), bench.dataset.info
    result = {
        "command": f"python benchmarks/policies.py --rounds {rounds} --seconds {seconds:g}",
        "machine": machine.facts,
        "threads": machine.loader_threads,
        "batch_size": bench.loader_batch_size,
        "data": {"domains": list(info.domains), "drawn": info.drawn, "images": len(bench.samples)},
        "policies": {name: policy.to_plain() for name, policy in sides().items()},
        "image_sizes": sizes,
    }
    print_json(result, json_file)


if __name__ == "__main__":
    typer.run(main)
