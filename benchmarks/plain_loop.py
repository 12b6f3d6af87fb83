"""The loop of docs/library.md with our loader, beside our own training step on the same network and data.

    python benchmarks/plain_loop.py --data Source/prepared --json benchmarks/results/plain_loop.json

Both sides train from random weights in fp32 on the CPU. The plain loop is what a user writes: timm's network in
channels_last, fused AdamW, normalisation by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from output import JsonFile, machine_line, print_json, ranged, table, times

if TYPE_CHECKING:
    from hemafast.bench.settings import Bench
    from hemafast.bench.worker import Station

OURS, PLAIN = "hemafast train", "the plain loop"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The table of docs/results.md."""
    result = results["plain_loop"]
    rows = [
        [name, ranged(side["images_per_second"]), ranged(side["images_per_cpu_second"])]
        for name, side in result["sides"].items()
    ]
    text = table("loop | images/s | images per CPU-second", rows)
    return {
        "plain_loop": f"{text}\n\n`{result['command']}`: {result['model']}, {result['image_size']} px, batch "
        f"{result['batch_size']}, real images. The plain loop reaches {times(result['ratio'])} of hemafast's rate. "
        f"{machine_line(result['machine'])}"
    }


def ours(bench: Bench) -> Station:
    """Loader and step as `hemafast train` builds them."""
    from hemafast.bench.training import end_to_end

    return end_to_end(bench)


def plain(bench: Bench) -> Station:
    """The loop of docs/library.md."""
    import timm
    import torch

    from hemafast.bench.worker import Done
    from hemafast.engine.machine import tune_allocator

    tune_allocator()  # as importing and calling `hf.train` before does
    settings = bench.settings
    model: Any = timm.create_model(settings.model, num_classes=len(bench.dataset.classes))
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    mean, std = (255 * torch.tensor(model.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    loader = bench.dataset.loader("train", policy="basic", batch_size=bench.batch_size, size=settings.image_size)
    for _ in count():
        for images, labels in loader:
            loss = torch.nn.functional.cross_entropy(model((images - mean) / std), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad()
            yield Done(len(labels))


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")],
    json_file: JsonFile,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "resnet18",
    image_size: Annotated[int, typer.Option(help="Side in pixels of the network's input.")] = 128,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="Measurements of each side, in turn.")] = 5,
    seconds: Annotated[float, typer.Option(help="Least length of a measurement.")] = 10.0,
) -> None:
    """Measure both loops in turn; about two minutes."""
    from scaling import real_images

    from hemafast.bench.result import spread
    from hemafast.bench.settings import Bench, bench_settings
    from hemafast.bench.worker import Round, Worker
    from hemafast.engine.machine import choose_machine

    real_images(data)
    settings = bench_settings(
        data=data, model=model, image_size=image_size, batch_size=batch_size, device="cpu", amp="off", compile="off"
    )
    bench = Bench(settings)
    found: dict[str, list[Round]] = {OURS: [], PLAIN: []}
    with Worker({OURS: ours}, bench) as first, Worker({PLAIN: plain}, bench) as second:
        sides = {OURS: first, PLAIN: second}
        for round_ in range(1 + rounds):
            for name, worker in sides.items():
                measured = worker.run(name, seconds)
                if round_:  # the first is a warm-up
                    found[name].append(measured)
    rates = {name: [one.images / one.seconds for one in side] for name, side in found.items()}
    result = {
        "command": f"python benchmarks/plain_loop.py --model {model} --image-size {image_size} --rounds {rounds}",
        "machine": choose_machine(device="cpu", amp="off", compiled="off").facts,
        "model": model,
        "image_size": image_size,
        "batch_size": batch_size,
        "sides": {
            name: {
                "images_per_second": spread(rates[name]),
                "images_per_cpu_second": spread([one.images / one.cpu_seconds for one in side]),
            }
            for name, side in found.items()
        },
        "ratio": spread([mine / theirs for mine, theirs in zip(rates[PLAIN], rates[OURS], strict=True)]),
    }
    print_json(result, json_file)


if __name__ == "__main__":
    typer.run(main)
