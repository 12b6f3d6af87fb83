"""`hemafast predict` beside the network alone: what reading, verifying, decoding and cutting cost.

    python benchmarks/predict.py --archive Source/Acevedo_20.zip --json benchmarks/results/predict.json

The forward-only side classifies one ready batch of views over and over. The other two predict the images of the
archive, from a zip and from a folder, to the last probability. All three use the same network (its weights do
not matter here) and take turns in one process.
"""

from __future__ import annotations

import tempfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from output import JsonFileOrNone, machine_line, percentages, print_json, ranged, table

from hemafast.bench.result import spread
from hemafast.engine.machine import machine_facts, tune_allocator
from hemafast.errors import HemafastError
from hemafast.taxonomy import CHALLENGE_CLASSES, UM_PER_PIXEL


def write_model(file: Path, name: str, image_size: int) -> None:
    """A model of random weights that looks at 25 um, as `hemafast predict` takes it."""
    from hemafast.engine.checkpoint import ModelCard, View, save_best
    from hemafast.model import build_model

    card = ModelCard(
        backbone=name,
        classes=CHALLENGE_CLASSES,
        image_size=image_size,
        view=View(packed_size=256, field_of_view=25.0, um_per_pixel=dict(UM_PER_PIXEL)),
        domains=tuple(UM_PER_PIXEL),
        epoch=1,
        started_from="RANDOM WEIGHTS: speed is all that is asked of them",
        data_fingerprint="",
        drawn_data=False,
    )
    save_best(file, build_model(name, len(CHALLENGE_CLASSES), image_size), card)


def measured(work: Callable[[], int]) -> tuple[float, float]:
    """Images a second and images a CPU-second of `work`, which returns its images."""
    wall, cpu = time.perf_counter(), time.process_time()
    images = work()
    return images / (time.perf_counter() - wall), images / (time.process_time() - cpu)


def copy_some(archive: Path, room: Path, images: int) -> tuple[dict[str, Path], int]:
    """The first images of an archive as a zip and as a folder, and how many they are."""
    with zipfile.ZipFile(archive) as packed:
        if "DRAWN.txt" in packed.namelist():
            raise HemafastError(f"{archive} holds drawn cells.", "Name an archive of photographs.")
        names = [info.filename for info in packed.infolist() if not info.is_dir()][:images]
        folder, some = room / archive.stem, room / archive.name
        packed.extractall(folder, names)
        with zipfile.ZipFile(some, "w") as copy:
            for name in names:
                copy.writestr(name, packed.read(name))
    return {"zip": some, "files": folder}, len(names)


def make_sides(
    archive: Path, file: Path, room: Path, image_size: int, batch_size: int, images: int
) -> tuple[dict[str, Callable[[], int]], int]:
    """What is measured, by name, and how many images each classifies; the forward-only side does whole batches."""
    import torch

    from hemafast.deploy.plan import Options, make_plan
    from hemafast.deploy.predict import classify

    paths, count = copy_some(archive, room, images)
    options = Options(device="cpu", amp="off", batch_size=batch_size)
    plans = {name: make_plan([file], [str(path)], options) for name, path in paths.items()}
    network = plans["zip"].groups[0].models[0].network
    views = torch.randint(0, 256, (batch_size, image_size, image_size, 3), dtype=torch.uint8).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def forward() -> int:
        for _ in range(count // batch_size):
            network(views).softmax(dim=1)
        return count // batch_size * batch_size

    return {
        "forward": forward,
        "zip": lambda: len(classify(plans["zip"])),
        "files": lambda: len(classify(plans["files"])),
    }, count


def engines_of(run: Path, archive: Path, images: int, rounds: int) -> dict[str, Any]:
    """Images a second from a folder, CPU milliseconds an image, and milliseconds a batch of 1 and of 64, by engine.

    Engines are those that can run `run` here. CPU time is that of all threads: of the whole, and of the network alone.
    """
    import torch

    from hemafast.deploy.engines import OPENERS, TORCH, available
    from hemafast.deploy.plan import Options, make_plan
    from hemafast.deploy.predict import classify

    names: list[Any] = [TORCH, *(name for name in OPENERS if available(name))]
    with tempfile.TemporaryDirectory() as room:
        paths, count = copy_some(archive, Path(room), images)
        plans = {
            name: make_plan([run], [str(paths["files"])], Options(device="cpu", amp="off", engine=name))
            for name in names
        }
        rates: dict[str, list[float]] = {name: [] for name in names}
        spent: dict[str, dict[str, list[float]]] = {name: {"whole": [], "network": []} for name in names}
        waits: dict[str, dict[int, list[float]]] = {name: {1: [], 64: []} for name in names}
        for number in range(1 + rounds):
            for name, plan in plans.items():
                rate, of_cpu = measured(lambda plan=plan: len(classify(plan)))  # type: ignore[misc]
                model = plan.models[0]
                side = model.card.image_size
                for size, times in waits[name].items():
                    batch = torch.randint(0, 256, (size, side, side, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
                    started, cpu = time.perf_counter(), time.process_time()
                    model.logits(batch)
                    if number:  # the first is the warm-up
                        times.append(1000 * (time.perf_counter() - started))
                        network = 1000 * (time.process_time() - cpu) / size  # of the larger batch, which comes last
                if number:
                    rates[name].append(rate)
                    spent[name]["whole"].append(1000 / of_cpu)
                    spent[name]["network"].append(network)
    card = plan.models[0].card
    return {
        "model": card.backbone,
        "image_size": card.image_size,
        "quarter_turns": card.quarter_turns,
        "images": count,
        "images_per_second": {name: spread(found) for name, found in rates.items()},
        "cpu_milliseconds_an_image": {
            name: {part: spread(found) for part, found in parts.items()} for name, parts in spent.items()
        },
        "milliseconds": {
            name: {str(size): spread(times) for size, times in sizes.items()} for name, sizes in waits.items()
        },
    }


def main(
    archive: Annotated[Path, typer.Option(help="Zip of real images, named after its domain.")],
    json_file: JsonFileOrNone = None,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    image_size: Annotated[int, typer.Option(help="Side in pixels of what the network sees.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 64,
    images: Annotated[int, typer.Option(help="How many to classify in a round.")] = 1024,
    rounds: Annotated[int, typer.Option(min=3, help="How often all is measured.")] = 5,
    run: Annotated[
        list[Path] | None,
        typer.Option(help="Run with an int8 export: measure its engines instead of the network. May be repeated."),
    ] = None,
) -> None:
    """Measure all sides, interleaved; about four minutes on two cores."""
    tune_allocator()
    if run:
        result: dict[str, Any] = {
            "command": f"python benchmarks/predict.py{' --run RUN' * len(run)} --images {images} --rounds {rounds}",
            "machine": machine_facts("cpu"),
            "archive": archive.stem,
            "rounds": rounds,
            "runs": [engines_of(one, archive, images, rounds) for one in run],
        }
        print_json(result, json_file)
        return
    with tempfile.TemporaryDirectory() as room:
        file = Path(room, "model.safetensors")
        write_model(file, model, image_size)
        sides, count = make_sides(archive, file, Path(room), image_size, batch_size, images)
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for number in range(1 + rounds):
            for name, work in sides.items():
                rates = measured(work)
                if number:  # the first is the warm-up
                    found[name].append(rates)
    shares = {
        name: [mine[0] / alone[0] for mine, alone in zip(found[name], found["forward"], strict=True)]
        for name in ("zip", "files")
    }
    result = {
        "command": f"python benchmarks/predict.py --model {model} --images {images} --rounds {rounds}",
        "machine": machine_facts("cpu"),
        "model": model,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": "fp32",
        "archive": archive.stem,
        "images": count,
        "rounds": rounds,
        "images_per_second": {name: spread([rate for rate, _ in rates]) for name, rates in found.items()},
        "images_per_cpu_second": {name: spread([rate for _, rate in rates]) for name, rates in found.items()},
        "share_of_forward": {name: spread(values) for name, values in shares.items()},
    }
    print_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What predicting reaches of the network alone, and what engines reach."""
    return {"predict": _beside_the_network(results["predict"]), "predict_engines": _engines(results["predict_engines"])}


def _engines(result: Mapping[str, Any]) -> str:
    rows = []
    for run in result["runs"]:
        looks = "four looks" if run["quarter_turns"] else "one look"
        for engine, rate in run["images_per_second"].items():
            spent, waits = run["cpu_milliseconds_an_image"][engine], run["milliseconds"][engine]
            rows.append(
                [
                    f"{run['model']}, {run['image_size']} px, {looks}",
                    "torch" if engine == "torch" else f"{engine}, int8",
                    ranged(rate),
                    f"{spent['whole']['median']:.1f}",
                    f"{spent['network']['median']:.1f}",
                    *(f"{waits[size]['median']:.1f}" for size in ("1", "64")),
                ]
            )
    header = "run | engine | images/s | CPU ms an image | of which the network | ms a batch of 1 | of 64"
    note = (
        f"`{result['command']}`, {result['runs'][0]['images']:,} real images of {result['archive']} from a folder, "
        f"{result['rounds']} interleaved rounds, median (min to max). {machine_line(result['machine'])}"
    )
    return table(header, rows, note)


def _beside_the_network(result: Mapping[str, Any]) -> str:
    titles = {
        "forward": "the network alone",
        "zip": "`hemafast predict`, a zip",
        "files": "`hemafast predict`, a folder",
    }
    shares = result["share_of_forward"]
    rows = [
        [
            title,
            ranged(result["images_per_second"][side]),
            ranged(result["images_per_cpu_second"][side]),
            percentages(shares[side]) if side in shares else "",
        ]
        for side, title in titles.items()
    ]
    note = (
        f"`{result['command']}`, {result['precision']}, {result['image_size']} px, batch {result['batch_size']}, "
        f"{result['images']:,} real images of {result['archive']}, {result['rounds']} interleaved rounds, median "
        f"(min to max). {machine_line(result['machine'])}"
    )
    return table("| images/s | images per CPU-second | share of the network alone", rows, note)


if __name__ == "__main__":
    typer.run(main)
