"""Training steps with our weight gradients of depthwise convolutions, and with oneDNN's.

    python benchmarks/depthwise.py --json benchmarks/results/depthwise.json

Two processes a network, which differ in `Bench.own_gradients` alone, take turns on the same batches of real images,
and then the two gradients do, on tensors of the shapes that the network has in its own convolutions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from output import JsonFile, machine_line, ranged, table, times, write_json

from hemafast.bench.result import spread
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Round, Worker
from hemafast.engine.machine import choose_machine

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hemafast.bench.stations import Make


@dataclass(frozen=True, slots=True)
class Case:
    """A network and how it is trained."""

    model: str
    image_size: int
    freeze_stages: int = 0

    @property
    def name(self) -> str:
        """For people."""
        frozen = f", {self.freeze_stages} stages frozen" if self.freeze_stages else ""
        return f"{self.model}, {self.image_size} px{frozen}"

    def bench(self, data: Path, batch_size: int) -> Bench:
        """As the bench has it: on the CPU, in full precision."""
        settings = bench_settings(
            data=data,
            model=self.model,
            image_size=self.image_size,
            batch_size=batch_size,
            device="cpu",
            amp="off",
            compile="off",
            freeze_stages=self.freeze_stages,
        )
        return Bench(settings)


CASES = (
    Case("tf_efficientnet_lite0", 128, 5),
    Case("tf_efficientnet_lite0", 128),
    Case("efficientnet_b0", 224),
    Case("mobilenetv3_large_100", 224),
    Case("convnext_atto", 224),
)
"""The first two are the presets `fast` and `quick`, the third is the largest part of `best`."""

Shape = tuple[int, int, int, int, tuple[int, ...]]
"""Channels, side of the image, taps along a side, stride, padding."""


def race(name: str, station: Make, benches: dict[str, Bench], rounds: int, seconds: float) -> dict[str, Any]:
    """Rates of a station in two processes that take turns, and how many times faster the first of them is.

    The first round warms up.
    """
    measured: dict[str, list[Round]] = {side: [] for side in benches}
    with ExitStack() as stack:
        workers = {side: stack.enter_context(Worker({side: station}, bench)) for side, bench in benches.items()}
        for number in range(-1, rounds):
            for side, worker in workers.items():
                found = worker.run(side, seconds)
                if number >= 0:
                    measured[side].append(found)
                typer.echo(f"{name}, {side}: {found.images / found.seconds:.1f}/s", err=True)
    rates = {side: [one.images / one.seconds for one in found] for side, found in measured.items()}
    costs = {side: [one.images / one.cpu_seconds for one in found] for side, found in measured.items()}
    return {
        "images_per_second": {side: spread(found) for side, found in rates.items()},
        "images_per_cpu_second": {side: spread(found) for side, found in costs.items()},
        "ratio": spread([ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]),
    }


def shapes_of(case: Case) -> dict[Shape, int]:
    """Shapes of the convolutions that have our gradient, and the number of each."""
    import torch

    from hemafast.engine.depthwise import use_own_gradients
    from hemafast.model import build_model

    model = build_model(case.model, 2, case.image_size)
    model.freeze(stages=case.freeze_stages)
    plain = {name: type(module) for name, module in model.named_modules()}
    use_own_gradients(model, replace(choose_machine(device="cpu", amp="off", compiled="off"), own_gradients=True))
    found: dict[Shape, int] = {}

    def note(module: nn.Conv2d, inputs: tuple[Tensor], _: Tensor) -> None:
        padding = (0, 0) if isinstance(module.padding, str) else module.padding
        shape = (module.in_channels, inputs[0].shape[2], module.kernel_size[0], module.stride[0], padding)
        found[shape] = found.get(shape, 0) + 1

    for name, module in model.named_modules():
        if type(module) is not plain[name]:
            module.register_forward_hook(note)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, case.image_size, case.image_size, dtype=torch.uint8))
    return found


def gradients(shape: Shape, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Both ways to the same gradient of a convolution of this shape."""
    import torch

    from hemafast.engine.depthwise import weight_gradient

    channels, side, taps, stride, padding = shape
    images = torch.randn(batch_size, channels, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(channels, 1, taps, taps)
    out = torch.nn.functional.conv2d(images, weight, None, stride, padding, groups=channels)
    slopes = torch.randn_like(out)

    def onednn() -> Any:
        _, of_weight, _ = torch.ops.aten.convolution_backward(
            *(slopes, images, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], channels),
            (False, True, False),
        )
        return of_weight

    return {"own": lambda: weight_gradient(images, slopes, taps, stride, (padding[0], padding[1])), "oneDNN": onednn}


def timed(shape: Shape, batch_size: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of both, interleaved, and how many times as long oneDNN takes."""
    sides = gradients(shape, batch_size)
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, 4 * rounds):
        for side, compute in sides.items():
            started = time.perf_counter()
            compute()
            if number >= 0:
                times[side].append(1e3 * (time.perf_counter() - started))
    ratios = [theirs / ours for ours, theirs in zip(times["own"], times["oneDNN"], strict=True)]
    return {"milliseconds": {side: spread(found) for side, found in times.items()}, "ratio": spread(ratios)}


def main(
    json_file: JsonFile,
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a measurement of steps.")] = 5.0,
) -> None:
    """Race both, about a minute and a half a network on two cores."""
    from hemafast.bench.training import step

    machine = choose_machine(device="cpu", amp="off", compiled="off")
    result: dict[str, Any] = {
        "command": f"python benchmarks/depthwise.py --batch-size {batch_size} --rounds {rounds} --seconds {seconds:g}",
        "machine": machine.facts,
        "batch_size": batch_size,
        "by_default": machine.own_gradients,
        "cases": {},
    }
    for case in CASES:
        bench = case.bench(data, batch_size)
        benches = {side: replace(bench, own_gradients=side == "own") for side in ("own", "oneDNN")}
        result["cases"][case.name] = race(case.name, step, benches, rounds, seconds) | {
            "convolutions": [
                {"channels": shape[0], "side": shape[1], "taps": shape[2], "stride": shape[3], "number": number}
                | timed(shape, batch_size, rounds)
                for shape, number in shapes_of(case).items()
            ],
        }
        write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Training steps with our gradients of depthwise convolutions and with oneDNN's, on two processors."""
    return {name: _table(results[name]) for name in ("depthwise", "depthwise_avx512")}


def _table(result: Mapping[str, Any]) -> str:
    rows = []
    for name, found in result["cases"].items():
        rates, costs = found["images_per_second"], found["images_per_cpu_second"]
        alone = [one["ratio"]["median"] for one in found["convolutions"]]
        number = sum(one["number"] for one in found["convolutions"])
        rows.append(
            [
                name,
                ranged(rates["own"]),
                ranged(rates["oneDNN"]),
                times(found["ratio"]),
                f"{costs['own']['median']:.1f} / {costs['oneDNN']['median']:.1f}",
                f"{number}: {min(alone):.1f} to {max(alone):.1f}x",
            ]
        )
    note = (
        f"`{result['command']}`, fp32, whole training steps, interleaved rounds, median (min to max). The last column "
        "has the number of depthwise convolutions, and how many times as long oneDNN takes for their gradients. "
        f"{machine_line(result['machine'])}"
    )
    header = "network | ours, images/s | oneDNN's, images/s | step | images per CPU-second | the gradients alone"
    return table(header, rows, note)


if __name__ == "__main__":
    typer.run(main)
