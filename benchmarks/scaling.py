"""How a training step and the loader scale: with images, pixels, threads and ranks, in one interleaved run an axis.

    python benchmarks/scaling.py --json benchmarks/results/scaling.json --plot benchmarks/results/scaling.png

- images: an epoch of the loader, and of loader and step, over ever more images. Larger counts repeat the images, so
  that the work grows and not the pages read from the disk.
- pixels: the loader, and the step on ready batches, at ever larger views.
- threads: the same, with 1 to all cores for the loader's threads or torch's.
- ranks: processes of one thread each that exchange gradients by gloo, as torchrun starts them, with and without their
  loaders. Every rank has a whole batch, so that a perfect exchange multiplies the rate.

The rounds of all points of an axis are interleaved. Lines and exponents are fitted round by round. Refuses drawn data.
"""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count, cycle
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import typer
from output import JsonFileOrNone, machine_line, percentages, print_json, ranged, table

from hemafast.bench.result import FEWEST_ROUNDS, spread
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Done, Round, Station, Worker
from hemafast.data.batch import Batch
from hemafast.data.dataset import open_dataset
from hemafast.data.loader import Loader, train_loader
from hemafast.data.samples import Samples
from hemafast.data.stream import ALONE, Process
from hemafast.engine.machine import choose_machine

if TYPE_CHECKING:
    from hemafast.engine.distributed import World

LOADER, STEP, BOTH = "loader", "step", "loader and step"
POLICY = "seed"
"""The default of training; at every size it scales, so that no size is a special case."""
SIZES = (64, 96, 128, 160, 224, 288)
SMALL = 64
"""Pixels where whole epochs are measured, so that they take seconds."""
LOADED, TRAINED = (1 / 4, 1 / 2, 1, 4, 16), (1 / 64, 1 / 32, 1 / 16, 1 / 8)
"""Images of an epoch of the loader, and of loader and step, as shares of the training split."""
_RATE = 1e-4

Make = Callable[[Bench], Station]


class Side(NamedTuple):
    """One point of one series."""

    series: str
    at: int
    make: Make
    reads_ahead: bool = False
    """Whether batches may lie ready when a round begins."""

    @property
    def name(self) -> str:
        """Its name in the worker."""
        return f"{self.series}, {self.at}"


@dataclass(frozen=True, slots=True)
class Axis:
    """What grows, and what is measured."""

    unit: str
    """Unit of what grows."""
    measure: Callable[[int], float]
    """Turns a side's `at` into that unit."""
    quantity: str
    """Name and unit of what is measured."""
    value: Callable[[Round], float]
    speeds_up: bool
    """Whether the quantity is a rate, which should grow in proportion; else it is a cost."""


AXES = {
    "images": Axis("images", float, "ms an epoch", lambda one: 1e3 * one.seconds / one.steps, False),
    "pixels": Axis(
        "megapixels an image",
        lambda side: side**2 / 1e6,
        "ms an image",
        lambda one: 1e3 * one.seconds / one.images,
        False,
    ),
    "threads": Axis("threads", float, "images/s", lambda one: one.images / one.seconds, True),
    "ranks": Axis("processes", float, "images/s", lambda one: one.images / one.seconds, True),
}

Sides = list[list[Side]]
"""The sides of each process."""


def sides_of(axis: str, images: int, cores: int) -> Sides:
    """The sides along an axis, for a number of training images and of cores."""
    workers = [*(1 << power for power in range(cores.bit_length()) if 1 << power < cores), cores]
    if axis == "images":
        return [
            [Side(LOADER, some, partial(loader_epochs, some)) for some in _shares(images, LOADED)],
            [Side(BOTH, some, partial(training_epochs, some)) for some in _shares(images, TRAINED)],
        ]
    if axis == "pixels":
        return [
            [Side(name, size, partial(sized, make, size), name == LOADER) for size in SIZES]
            for name, make in ALONE_SERIES.items()
        ]
    if axis == "threads":  # torch has one number of threads a process
        return [
            [Side(name, threads, partial(threaded, make, threads), name == LOADER)]
            for name, make in ALONE_SERIES.items()
            for threads in workers
        ]
    return [
        [Side(name, ranks, partial(training_by_ranks, ranks, name == BOTH))]
        for name in (STEP, BOTH)
        for ranks in workers
    ]


def _shares(images: int, shares: Sequence[float]) -> list[int]:
    return sorted({max(round(share * images), 2) for share in shares})


def loader_epochs(images: int, bench: Bench) -> Station:
    """Whole epochs of our loader over `images` images; each is one `Done`."""
    loader = _loader(changed(bench, image_size=SMALL), bench.loader_batch_size, images)
    while True:
        yield Done(sum(len(batch.labels) for batch in loader.epoch()))


def training_epochs(images: int, bench: Bench) -> Station:
    """Whole epochs of loader and training step over `images` images; each is one `Done`."""
    from hemafast.engine.distributed import World

    bench = changed(bench, image_size=SMALL)
    loader = _loader(bench, bench.batch_size, images)
    steps = _steps(bench, _endless(loader), World())
    while True:
        yield Done(sum(next(steps).images for _ in range(len(loader))))


def changed(bench: Bench, **settings: Any) -> Bench:
    """The same bench with other settings of the training."""
    return replace(bench, settings=replace(bench.settings, **settings))


def sized(make: Make, size: int, bench: Bench) -> Station:
    """A station at views of `size` pixels."""
    return make(changed(bench, image_size=size))


def threaded(make: Make, threads: int, bench: Bench) -> Station:
    """A station with `threads` threads in the loader and in torch."""
    import torch

    torch.set_num_threads(threads)
    return make(changed(bench, threads=threads))


def step_alone(bench: Bench) -> Station:
    """Our training step on ready batches."""
    from hemafast.bench.training import step

    return step(bench)


def loader_alone(bench: Bench) -> Station:
    """Our loader from packed squares."""
    from hemafast.bench.feeding import load

    return load("packed", POLICY, bench)


ALONE_SERIES: Mapping[str, Make] = {STEP: step_alone, LOADER: loader_alone}


def training_by_ranks(ranks: int, loaded: bool, bench: Bench) -> Station:
    """Training steps of `ranks` processes of one thread each; this one is the first, and ends the others."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    from hemafast.engine.distributed import joined

    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    context = get_context("spawn")
    others = [
        context.Process(target=_follow, args=(rank, ranks, store.port, loaded, bench), daemon=True)
        for rank in range(1, ranks)
    ]
    for other in others:
        other.start()
    _become(0, ranks, store.port)
    with joined("cpu") as world:
        try:
            yield from _rank(world, loaded, bench)
        finally:
            for other in others:
                other.kill()
                other.join()


def _follow(rank: int, ranks: int, port: int, loaded: bool, bench: Bench) -> None:
    """Train for as long as the first rank does, which then ends this process: the exchange keeps them in step."""
    from hemafast.engine.distributed import joined

    _become(rank, ranks, port)
    with joined("cpu") as world:
        for _ in _rank(world, loaded, bench):
            pass


def _become(rank: int, ranks: int, port: int) -> None:
    """Set what torchrun would have set for this rank, and its one thread."""
    import torch

    torch.set_num_threads(1)
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    os.environ |= {name: str(number) for name, number in numbers.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_USE_AGENT_STORE": "True"}


def _rank(world: World, loaded: bool, bench: Bench) -> Station:
    from hemafast.bench.training import ready_batches

    bench = changed(bench, threads=1)
    if loaded:
        return _steps(bench, _endless(_loader(bench, bench.batch_size, process=world.process)), world)
    return _steps(bench, cycle(ready_batches(bench)), world)


def _loader(bench: Bench, batch_size: int, images: int | None = None, process: Process = ALONE) -> Loader:
    """Our loader over the training images of one of several processes; over the first `images` of them, repeated."""
    from hemafast.data.augment import POLICIES
    from hemafast.data.graph import GraphShape

    samples, threads = bench.samples, bench.machine().loader_threads
    if images is not None:
        samples = samples.select(np.arange(images) % len(samples))
    shape = GraphShape("cpu", "packed", samples.packed_size, bench.settings.image_size, batch_size, threads)
    return train_loader(samples, policy=POLICIES[POLICY], seed=0, shape=shape, process=process)


def _endless(loader: Loader) -> Iterator[Batch]:
    return (batch for _ in count() for batch in loader.epoch())


def _steps(bench: Bench, batches: Iterator[Batch], world: World) -> Station:
    """Training steps of this process; images are those of all."""
    from hemafast.bench.training import build_measured
    from hemafast.engine.step import Totals

    learner, _ = build_measured(bench, world)
    train, totals = learner.train_step, Totals(len(bench.dataset.classes), "cpu")
    for number, batch in enumerate(batches):
        train(batch, _RATE, totals, step=number)
        yield Done(len(batch.labels) * world.process.world_size)


def race(sides: Sides, bench: Bench, rounds: int, seconds: float) -> dict[Side, list[Round]]:
    """Interleaved measurements of all sides, after a warm-up round."""
    measured: dict[Side, list[Round]] = defaultdict(list)
    with ExitStack() as stack:
        workers = [_worker(stack, mine, bench) for mine in sides]
        for number in range(1 + rounds):
            for mine, worker in zip(sides, workers, strict=True):
                for side in mine:
                    found = worker.run(side.name, seconds)
                    if number:
                        measured[side].append(found)
                    typer.echo(f"{number}/{rounds} {side.name}: {found.images / found.seconds:,.1f}/s", err=True)
    return measured


def _worker(stack: ExitStack, sides: Sequence[Side], bench: Bench) -> Worker:
    ahead = frozenset(side.name for side in sides if side.reads_ahead)
    return stack.enter_context(Worker({side.name: side.make for side in sides}, bench, reads_ahead=ahead))


def summary(axis: Axis, measured: Mapping[Side, list[Round]]) -> dict[str, Any]:
    """Of every series its points, and what can be fitted to them."""
    series: dict[str, list[Side]] = defaultdict(list)
    for side in measured:
        series[side.series].append(side)
    return {
        "unit": axis.unit,
        "quantity": axis.quantity,
        "series": {
            name: {
                "points": [_point(axis, side.at, measured[side]) for side in sides],
                **fitted(axis, {axis.measure(side.at): list(map(axis.value, measured[side])) for side in sides}),
            }
            for name, sides in series.items()
        },
    }


def _point(axis: Axis, at: int, rounds: Sequence[Round]) -> dict[str, Any]:
    return {
        "at": at,
        "value": spread([axis.value(one) for one in rounds]),
        "images_per_second": spread([one.images / one.seconds for one in rounds]),
        "images_per_cpu_second": spread([one.images / max(one.cpu_seconds, 1e-9) for one in rounds]),
        "rounds": [asdict(one) for one in rounds],
    }


def fitted(axis: Axis, values: Mapping[float, Sequence[float]]) -> dict[str, Any]:
    """Exponent of a power law through the points, round by round; of a cost also a line, of a rate its efficiency.

    `values` are the measurements of each round by what grew. A single point gives no fit.
    """
    if len(values) < 2:
        return {}
    grown, rounds = np.array(list(values)), np.array(list(values.values())).T
    exponent = spread([float(np.polyfit(np.log(grown), np.log(one), 1)[0]) for one in rounds])
    if axis.speeds_up:
        shares = rounds / rounds[:, :1] / (grown / grown[0])
        return {"exponent": exponent, "efficiency": [spread(column.tolist()) for column in shares.T]}
    # Weighted by 1 / value: what disturbs a measurement is a share of it, so that the small ones count too.
    lines = [np.polyfit(grown, one, 1, w=1 / one).tolist() for one in rounds]
    slopes, offsets = zip(*lines, strict=True)
    return {"exponent": exponent, "line": {"each": spread(list(slopes)), "fixed": spread(list(offsets))}}


def draw(axes: Mapping[str, Any], file: Path) -> None:
    """A picture of all axes, logarithmic: medians with the least and the most, lines fitted, proportions dotted."""
    from hemafast.pictures import save, subplots

    figure, panels = subplots(len(axes), width=4.8, height=3.5, columns=2)
    for panel, (name, found) in zip(panels, axes.items(), strict=True):
        _draw_axis(panel, AXES[name], found)
        panel.set_title(name, fontsize=10, loc="left")
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)


def _draw_axis(panel: Any, axis: Axis, found: Mapping[str, Any]) -> None:
    from hemafast.pictures import DOMAIN_COLOURS, TRAIN_COLOUR, VAL_COLOUR

    colours = {LOADER: DOMAIN_COLOURS[0], STEP: TRAIN_COLOUR, BOTH: VAL_COLOUR}
    for name, series in found["series"].items():
        grown = np.array([axis.measure(point["at"]) for point in series["points"]])
        middle, least, most = (
            np.array([point["value"][key] for point in series["points"]]) for key in ("median", "min", "max")
        )
        panel.errorbar(
            grown,
            middle,
            yerr=[middle - least, most - middle],
            fmt="o",
            ms=4,
            capsize=2,
            color=colours[name],
            label=name,
        )
        ends = np.geomspace(grown[0], grown[-1], 50)
        if line := series.get("line"):
            panel.plot(ends, line["fixed"]["median"] + line["each"]["median"] * ends, color=colours[name], lw=1)
        elif len(grown) > 1:
            panel.plot(ends, middle[0] * ends / grown[0], color=colours[name], lw=1, linestyle=":")
    panel.set(xscale="log", yscale="log", xlabel=axis.unit, ylabel=axis.quantity)
    _label_points(panel, axis, found)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)


def _label_points(panel: Any, axis: Axis, found: Mapping[str, Any]) -> None:
    """Ticks at what was measured, a size in pixels by its side; beside them plain numbers."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    sides = sorted({point["at"] for series in found["series"].values() for point in series["points"]})
    squares = axis is AXES["pixels"]
    labels = [f"{at}²" if squares else f"{at:,}" for at in sides]
    panel.set_xticks([axis.measure(at) for at in sides], labels, fontsize=7, rotation=30 if len(sides) > 6 else 0)
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_minor_formatter(NullFormatter())
    panel.tick_params(axis="y", labelsize=7)


def real_images(data: Path) -> tuple[Samples, list[str]]:
    """Training images and domains of a data set; ends the program if they are drawn."""
    dataset = open_dataset(data)
    if dataset.info.drawn:
        sys.exit(f"{data} holds drawn cells; no speed on them is worth keeping.")
    return dataset.samples("train"), list(dataset.info.domains)


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    json_file: JsonFileOrNone = None,
    plot: Annotated[Path | None, typer.Option(help="Draw it to this PNG.")] = None,
    axis: Annotated[
        list[str] | None, typer.Option(help="What to let grow; may be repeated.", show_default=", ".join(AXES))
    ] = None,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    batch_size: Annotated[int, typer.Option(min=2, help="Images a step.")] = 16,
    rounds: Annotated[int, typer.Option(min=FEWEST_ROUNDS, help="Measurements of each point.")] = FEWEST_ROUNDS,
    seconds: Annotated[float, typer.Option(min=0.1, help="Least length of a measurement.")] = 1.5,
) -> None:
    """Measure along all axes; about six minutes on two cores."""
    if unknown := set(axis or ()) - AXES.keys():
        sys.exit(f"There is no axis {min(unknown)!r}; there are {', '.join(AXES)}.")
    samples, domains = real_images(data)
    bench = Bench(bench_settings(data=data, model=model, batch_size=batch_size, device="cpu", amp="off", compile="off"))
    cores = len(os.sched_getaffinity(0))
    axes = {
        name: summary(AXES[name], race(sides_of(name, len(samples), cores), bench, rounds, seconds))
        for name in axis or AXES
    }
    result = {
        "command": f"python benchmarks/scaling.py --model {model} --batch-size {batch_size} --rounds {rounds} "
        f"--seconds {seconds:g}",
        "machine": choose_machine(device="cpu", amp="off", compiled="off").facts,
        "model": model,
        "image_size": bench.settings.image_size,
        "small_image_size": SMALL,
        "batch_size": batch_size,
        "loader_batch_size": bench.loader_batch_size,
        "policy": POLICY,
        "precision": "fp32",
        "domains": domains,
        "images": len(samples),
        "rounds": rounds,
        "axes": axes,
    }
    print_json(result, json_file)
    if plot is not None:
        draw(axes, plot)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The ends of each series and what fits them."""
    result = results["scaling"]
    rows = [
        [
            name,
            axis["quantity"],
            *(f"{point['at']:,}: {ranged(point['value'])}" for point in (series["points"][0], series["points"][-1])),
            _fit(axis, series),
        ]
        for axis in result["axes"].values()
        for name, series in axis["series"].items()
    ]
    note = (
        f"`{result['command']}`, {result['model']}, {result['precision']}, batch {result['batch_size']} "
        f"(loader alone: {result['loader_batch_size']}), policy `{result['policy']}`, "
        f"{result['images']:,} real training images of {' and '.join(result['domains'])}; longer epochs repeat them. "
        f"Epochs at {result['small_image_size']} px, threads and ranks at {result['image_size']} px, one thread per "
        f"rank. {result['rounds']} interleaved rounds, median (min to max). {machine_line(result['machine'])}"
    )
    return {"scaling": table("| | smallest | largest | fit", rows, note)}


def _fit(axis: Mapping[str, Any], series: Mapping[str, Any]) -> str:
    """The exponent, and the line or the efficiency at the end; nothing for a single point."""
    if "exponent" not in series:
        return ""
    power = f"to the power {series['exponent']['median']:.2f}"
    if "efficiency" in series:
        return f"{power}; efficiency {percentages(series['efficiency'][-1])}"
    line = series["line"]
    return f"{power}; {line['fixed']['median']:.3g} + {line['each']['median']:.3g} x {axis['unit']}"


if __name__ == "__main__":
    typer.run(main)
