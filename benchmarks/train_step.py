"""Our training step beside a plain PyTorch loop and timm's script: same network, same maths, one interleaved run.

    python benchmarks/train_step.py --data Source/prepared --json benchmarks/results/train_step.json

Each side is a process; all take turns, round after round, network by network. The matrix product and the memory copy
that run beside them are this machine's ceilings in the same minutes. The side of timm does what its train.py does in a
step with `--channels-last --opt adamw`, without and with `--torchcompile`; `best of timm` is the faster of the two.
At the end torch's profiler shows where the time of our step goes.
"""

from __future__ import annotations

import multiprocessing
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from output import JsonFileOrNone, machine_line, print_json, ranged, table, times

from hemafast.bench.result import spread
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Done, Round, Station, Worker
from hemafast.engine.machine import choose_machine

MODELS = ("efficientnet_b0", "resnet18")
_CLASSES = 11
_WARM_STEPS, _PROFILED_STEPS = 2, 5
_KINDS = {
    "batch_norm": "batch norm",
    "silu": "activation",
    "relu": "activation",
    "threshold": "activation",
    "copy_": "copies",
    "adamw": "optimizer",
}
"""Parts of torch's names of operators, and what they count as."""


def timm_step(compiled: bool, bench: Bench) -> Station:
    """The step of timm's train.py: normalised fp32 in channels_last, its optimizer factory, eager or compiled."""
    import timm
    import torch
    from timm.optim import create_optimizer_v2

    classes = len(bench.dataset.classes)
    model: Any = timm.create_model(bench.settings.model, num_classes=classes)
    model = model.to(memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.01)
    if compiled:
        model = torch.compile(model, backend="inductor")
    loss_of = torch.nn.CrossEntropyLoss()
    shape = (bench.batch_size, 3, bench.settings.image_size, bench.settings.image_size)
    images = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, classes, (bench.batch_size,))
    while True:
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield Done(bench.batch_size)


def sides() -> dict[str, Callable[[Bench], Station]]:
    """What takes turns, by name."""
    from hemafast.bench.ceilings import matrix_product, memory_copy
    from hemafast.bench.peer import plain_step
    from hemafast.bench.training import step

    return {
        "hemafast": step,
        "plain PyTorch": plain_step,
        "timm": partial(timm_step, False),
        "timm, compiled": partial(timm_step, True),
        "matrix product": matrix_product,
        "memory copy": memory_copy,
    }


def race(bench: Bench, rounds: int, seconds: float) -> dict[str, list[Round]]:
    """Interleaved measurements of every side."""
    makes = sides()
    measured: dict[str, list[Round]] = {name: [] for name in makes}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(Worker({name: make}, bench)) for name, make in makes.items()}
        for number in range(-1, rounds):
            for name, worker in workers.items():
                found = worker.run(name, seconds)
                if number >= 0:  # the first round warms up, and is where one side compiles
                    measured[name].append(found)
                typer.echo(f"{bench.settings.model} {name}: {found.images / found.seconds:,.1f}/s", err=True)
    return measured


def summary(model: str, image_size: int, measured: dict[str, list[Round]]) -> dict[str, Any]:
    """Rates, ratios paired by round, and shares of the matrix product's rate."""
    from hemafast.bench.ceilings import COPY_BYTES, PRODUCT_FLOPS
    from hemafast.bench.costs import step_costs

    rates = {name: [one.images / one.seconds for one in found] for name, found in measured.items()}
    best_of_timm = max(("timm", "timm, compiled"), key=lambda name: median(rates[name]))
    flops = step_costs(model, _CLASSES, image_size, "fp32").training_flops
    peak = [PRODUCT_FLOPS["cpu"] * rate for rate in rates["matrix product"]]
    steps = [name for name in measured if name not in ("matrix product", "memory copy")]
    return {
        "flops_an_image": flops,
        "images_per_second": {name: spread(rates[name]) for name in steps},
        "images_per_cpu_second": {name: spread([o.images / o.cpu_seconds for o in measured[name]]) for name in steps},
        "share_of_matrix_product": {
            name: spread([rate * flops / top for rate, top in zip(rates[name], peak, strict=True)]) for name in steps
        },
        "best_of_timm": best_of_timm,
        "ratios": {
            peer: spread([ours / theirs for ours, theirs in zip(rates["hemafast"], rates[peer], strict=True)])
            for peer in steps[1:]
        },
        "matrix_product_flops": spread(peak),
        "memory_copy_bytes": spread([COPY_BYTES["cpu"] * rate for rate in rates["memory copy"]]),
    }


def shares_of_time(bench: Bench) -> dict[str, float]:
    """What a step of ours spends its time on, by kind of operator, in a process of its own; profiling slows it down."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as executor:
        return executor.submit(_profiled, bench).result()


def _profiled(bench: Bench) -> dict[str, float]:
    from torch.profiler import ProfilerActivity, profile

    from hemafast.bench.training import step

    station = step(bench)
    for _ in range(_WARM_STEPS):
        next(station)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(_PROFILED_STEPS):
            next(station)
    seconds: Counter[str] = Counter()
    for event in profiler.key_averages(group_by_input_shape=True):
        seconds[_kind(event.key, event.input_shapes)] += event.self_cpu_time_total
    return {kind: time / seconds.total() for kind, time in seconds.most_common()}


def _kind(operator: str, shapes: list[list[int]]) -> str:
    if "convolution" in operator:
        place = 2 if "backward" in operator else 1  # of the weight (out, in / groups, height, width)
        weight = shapes[place] if len(shapes) > place else []
        if len(weight) != 4:
            return "other"
        if weight[1] == 1:
            return "depthwise convolutions"
        return "pointwise convolutions" if weight[2:] == [1, 1] else "other convolutions"
    return next((kind for part, kind in _KINDS.items() if part in operator), "other")


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    json_file: JsonFileOrNone = None,
    model: Annotated[
        list[str] | None, typer.Option(help="Networks to race; may be repeated.", show_default=", ".join(MODELS))
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a measurement.")] = 15.0,
) -> None:
    """Race training steps; about nine minutes a network on two cores."""
    machine = choose_machine(device="cpu", amp="off", compiled="off")
    results: dict[str, Any] = {
        "command": f"python benchmarks/train_step.py --batch-size {batch_size} --rounds {rounds} --seconds {seconds:g}",
        "machine": machine.facts,
        "image_size": 224,
        "batch_size": batch_size,
        "precision": "fp32",
        "models": {},
    }
    for name in model or MODELS:
        bench = Bench(bench_settings(data=data, model=name, batch_size=batch_size, device="cpu", amp="off"))
        raced = summary(name, bench.settings.image_size, race(bench, rounds, seconds))
        results["models"][name] = {**raced, "shares_of_time": shares_of_time(bench)}
    print_json(results, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Training steps of every side, by network, and where the time of ours goes."""
    result = results["train_step"]
    rows = [
        [
            model,
            side,
            ranged(rate),
            ranged(found["images_per_cpu_second"][side]),
            f"{found['share_of_matrix_product'][side]['median']:.0%}",
            times(found["ratios"][side]) if side in found["ratios"] else "",
        ]
        for model, found in result["models"].items()
        for side, rate in found["images_per_second"].items()
    ]
    note = (
        f"`{result['command']}`, {result['precision']}, {result['image_size']} px, equal maths, interleaved rounds, "
        "median (min to max). The share is that of the FLOP/s of a large matrix product, measured in the same minutes. "
        f"{machine_line(result['machine'])}"
    )
    time_spent = "\n".join(
        f"- {model}, by torch's profiler: "
        f"{', '.join(f'{kind} {share:.0%}' for kind, share in found['shares_of_time'].items())}."
        for model, found in result["models"].items()
    )
    header = "network | step of | images/s | images per CPU-second | of the matrix product | hemafast is faster by"
    return {"train_step": table(header, rows, note, time_spent)}


if __name__ == "__main__":
    typer.run(main)
