"""What each station costs with ever more images: seconds and peak memory, each in a process of its own.

    python benchmarks/growth.py --json benchmarks/results/growth.json --plot benchmarks/results/growth.png

The images are fields of random colours of 48 px, made on the spot: what grows here is their number, so their pixels
cost little. A million need 12 GB in --room, half an hour to make and prepare, and more to train on. An existing result
is added to, one stage after the other, so an interrupted call loses one stage: its folder in --room stays until the
size is done.

Seconds are those of whole processes, imports included. `exponent` is the slope of the logarithm of CPU seconds over
that of images between the two largest sizes: 1 is in proportion, 2 is quadratic. CPU seconds are told, as they count
beside other work too. Memory is that of the process, without pages of mapped files.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json
from processes import cost_of

from hemafast.config import train_config
from hemafast.files import write_whole
from hemafast.progress import Progress

SIZES = (3_000, 30_000, 300_000, 1_000_000)
CLASSES = ("basophil", "eosinophil", "lymphocyte", "monocyte", "neutrophil")
SIDE, FIELDS = 48, 8
"""px of an image, and fields of colour along its side."""
PACKED = 32
STAGES = ("prepare", "prepare again", "open", "first step", "epoch", "evaluate", "predict", "report", "verify")


def write_images(path: Path, images: int) -> None:
    """A zip of JPEGs, in class folders. Each has a colour of its own in each field, so that no two are alike."""
    from PIL import Image

    colours = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        for number in range(images):
            fields = colours.integers(60, 256, (FIELDS, FIELDS, 3), dtype=np.uint8)
            encoded = io.BytesIO()
            Image.fromarray(np.kron(fields, _ENLARGE)).save(encoded, "JPEG")
            file.writestr(f"{CLASSES[number % len(CLASSES)]}/{number:07d}.jpg", encoded.getvalue())


_ENLARGE = np.ones((SIDE // FIELDS, SIDE // FIELDS, 1), dtype=np.uint8)


def open_once(data: str) -> None:
    """Open a data set and its training images, as training does."""
    from hemafast.data.dataset import open_dataset

    open_dataset(Path(data)).samples("train", PACKED)


def train_epoch(data: str, runs: str, progress: Progress | None = None) -> None:
    """An epoch of a toy network, with its validation."""
    from hemafast.engine import trainer

    toy: dict[str, Any] = {"model": "test_resnet", "pretrained": "no", "image_size": PACKED, "policy": "basic"}
    where = {"data": Path(data), "output": Path(runs)}
    settings = train_config("quick", **toy, **where, epochs=1, batch_size=256, device="cpu", compile="off")
    trainer.train(settings, progress=progress or Progress())


def train_step(data: str, runs: str) -> None:
    """The same until its first step is done."""
    train_epoch(data, runs, _UntilFirstStep())


class _UntilFirstStep(Progress):
    """Ends the process when the first images have trained."""

    _training = False

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        """Notice where training begins."""
        self._training = "epoch" in facts

    def advance(self, count: int = 1, **measured: float) -> None:
        """End the process there."""
        if self._training:
            os._exit(0)


def grow(images: int, room: Path, done: dict[str, Any]) -> Iterator[str]:
    """Add to `done` what each stage costs for so many images, unless it is there; yields the name of each new one."""
    source, runs = room / "source", room / "runs"
    data = source / "prepared"
    if not (source / "Random.zip").is_file():
        source.mkdir(parents=True, exist_ok=True)
        write_whole(source / "Random.zip", lambda part: write_images(part, images))
    prepare = ["-m", "hemafast", "prepare", "--source", str(source), "--classes", "from-data", "--json"]
    prepare += ["--field-of-view", "whole", "--um-per-pixel", "Random=unknown", "--pack-size", str(PACKED)]
    of_run = {
        name: lambda name=name: ["-m", "hemafast", name, str(_run_in(runs)), "--json"]
        for name in ("evaluate", "report")
    }
    stages: dict[str, Callable[[], list[str]]] = {
        "prepare": lambda: prepare,
        "prepare again": lambda: prepare,
        "open": lambda: _own("open_once", data),
        "first step": lambda: _own("train_step", data, room / "cut"),
        "epoch": lambda: _own("train_epoch", data, runs),
        **of_run,
        "predict": lambda: [
            *("-m", "hemafast", "predict", str(_run_in(runs)), str(source / "Random.zip")),
            *("--output", str(room / "predicted.csv"), "--json"),
        ],
        "verify": lambda: ["-m", "hemafast", "verify", str(data), "--json"],
    }
    for name in STAGES:
        if name not in done:
            done[name] = cost = cost_of(stages[name]())
            typer.echo(f"{images:,} {name}: {cost['cpu_seconds']:.1f} s, {cost['own_memory_mb']:,.0f} MB", err=True)
            yield name


def _run_in(runs: Path) -> Path:
    """The newest run; one that was stopped may lie beside it."""
    return max(path for path in runs.iterdir() if (path / "metrics.json").is_file() or (path / "config.json").is_file())


def _own(function: str, *paths: Path) -> list[str]:
    """Arguments of Python that call a function of this file."""
    here = str(Path(__file__).resolve().parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import growth; growth.{function}(*sys.argv[1:])"
    return ["-c", code, *map(str, paths)]


def exponents(sizes: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """For each stage the slope between its two largest sizes, of the logarithms of CPU seconds over images."""
    found = {}
    for name in STAGES:
        costs = [(one["images"], one["stages"][name]["cpu_seconds"]) for one in sizes if name in one["stages"]][-2:]
        if len(costs) == 2:
            (fewer, less), (images, more) = costs
            found[name] = math.log(more / less) / math.log(images / fewer)
    return found


def draw(sizes: Sequence[Mapping[str, Any]], file: Path) -> None:
    """CPU seconds and memory of each stage over the number of images, logarithmic."""
    from hemafast.pictures import DOMAIN_COLOURS, save, subplots

    figure, panels = subplots(2, width=4.8, height=3.5, columns=2)
    labels = {"cpu_seconds": "CPU seconds", "own_memory_mb": "memory, MB"}
    for panel, (key, label) in zip(panels, labels.items(), strict=True):
        for number, name in enumerate(STAGES):
            measured = [(one["images"], one["stages"][name][key]) for one in sizes if name in one["stages"]]
            if measured:
                colour = DOMAIN_COLOURS[number % len(DOMAIN_COLOURS)]
                panel.plot(*zip(*measured, strict=True), "o-", ms=4, color=colour, label=name)
        panel.set(xscale="log", yscale="log", xlabel="images", ylabel=label)
        panel.grid(alpha=0.3)
    panels[0].legend(fontsize=7)
    file.parent.mkdir(parents=True, exist_ok=True)
    save(figure, file)


def main(
    json_file: JsonFileAddedTo,
    plot: Annotated[Path | None, typer.Option(help="Draw it to this PNG.")] = None,
    images: Annotated[list[int] | None, typer.Option(help="A size; may be repeated.", show_default="all four")] = None,
    room: Annotated[
        Path | None, typer.Option(help="Folder for data and runs, which are deleted.", show_default="the temporary one")
    ] = None,
    beside_others: Annotated[bool, typer.Option(help="Other work runs here: say so.")] = False,
) -> None:
    """Measure sizes that are not in the result yet, the smallest first."""
    from hemafast.engine.machine import choose_machine

    facts = choose_machine(device="cpu", amp="off", compiled="off").facts
    result = before(json_file, facts) or {"command": "python benchmarks/growth.py", "machine": facts, "sizes": []}
    by_size = {one["images"]: one for one in result["sizes"]}
    for size in sorted(images or SIZES):
        one = by_size.setdefault(size, {"images": size, "stages": {}, "beside_others": beside_others})
        folder = (room or Path(tempfile.gettempdir())) / f"growth-{size}"
        if not folder.exists():
            one["stages"] = one["stages"] if set(STAGES) <= set(one["stages"]) else {}
        for _ in grow(size, folder, one["stages"]) if set(STAGES) - set(one["stages"]) else ():
            result["sizes"] = sorted(by_size.values(), key=lambda one: int(one["images"]))
            result["exponents"] = exponents(result["sizes"])
            write_json(result, json_file)
        shutil.rmtree(folder, ignore_errors=True)
    if plot is not None:
        draw(result["sizes"], plot)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """CPU seconds and memory of each stage by number of images."""
    result = results["growth"]
    sizes = result["sizes"]
    measured = [name for name in STAGES if any(name in one["stages"] for one in sizes)]
    rows = [[name, *(_cost(one, name) for one in sizes), _exponent(result, name)] for name in measured]
    header = " | ".join(["", *(f"{one['images']:,} images" for one in sizes), "exponent"])
    beside = " Other work ran beside, so seconds of the clock are not told." if _disturbed(sizes) else ""
    note = (
        f"`{result['command']}`: JPEGs of {SIDE} px of random colours, packed at {PACKED} px, a toy network; "
        "one process each, imports included: CPU seconds, then the most memory of its own, without pages of mapped "
        f"files. Evaluate has a fifth of the images.{beside} "
        f"{machine_line(result['machine'])}"
    )
    return {"growth": table(header.strip(), rows, note)}


def _disturbed(sizes: Sequence[Mapping[str, Any]]) -> bool:
    return any(one["beside_others"] for one in sizes)


def _cost(one: Mapping[str, Any], stage: str) -> str:
    cost = one["stages"].get(stage)
    return f"{cost['cpu_seconds']:,.1f} s, {cost['own_memory_mb']:,.0f} MB" if cost else ""


def _exponent(result: Mapping[str, Any], stage: str) -> str:
    return f"{result['exponents'][stage]:.2f}" if stage in result["exponents"] else ""


if __name__ == "__main__":
    typer.run(main)
