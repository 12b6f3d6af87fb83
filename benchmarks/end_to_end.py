"""A whole run beside its training step alone: what data, validation, checkpoints and logs cost, and how a run starts.

    python benchmarks/end_to_end.py --data Source/prepared --json benchmarks/results/end_to_end.json

Each round measures the training step and the validation step alone, on ready batches, then runs
`hemafast train` for two epochs as a user would. The second epoch, from the line of the first in train.log to its own,
holds everything: data, training, validation, both checkpoints, logs. Its images over the seconds that the bare steps
would need for them is the share that is reached. Before that, while nothing else runs, `hemafast train` is started
a few times and stopped after its first step. The first start may fill the page cache and does not count.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from output import JsonFileOrNone, machine_line, percentages, print_json, ranged, table

from hemafast.bench.result import spread
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.worker import Worker
from hemafast.data.dataset import open_dataset
from hemafast.engine.machine import choose_machine
from hemafast.errors import HemafastError
from hemafast.preparation.split import TRAIN, VAL
from hemafast.run_folder import LOG

_LINE = re.compile(r"^(\S+ \S+) INFO epoch (\d+)/", flags=re.MULTILINE)
_FIRST_STEP = re.compile(r"first step ([\d.]+) s after")


def training_command(bench: Bench, output: str) -> list[str]:
    """`hemafast train` for two epochs, in a process of its own."""
    options = {
        "--data": bench.settings.data,
        "--output": output,
        "--model": bench.settings.model,
        "--image-size": bench.settings.image_size,
        "--batch-size": bench.batch_size,
        "--policy": "basic",
        "--device": bench.settings.device,
        "--amp": bench.settings.amp,
        "--epochs": 2,
    }
    return [sys.executable, "-m", "hemafast", "train", "--quiet", *map(str, sum(options.items(), ()))]


def first_step_seconds(bench: Bench) -> float:
    """Seconds from the start of the process to the end of its first step, as the log tells them."""
    with tempfile.TemporaryDirectory() as output:
        command = training_command(bench, output)
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                while process.poll() is None:
                    for log in Path(output).glob(f"*/{LOG}"):
                        if told := _FIRST_STEP.search(log.read_text(encoding="utf-8")):
                            return float(told[1])
                    time.sleep(0.1)
            finally:
                process.kill()
    raise HemafastError("hemafast train ended before its first step.", "Run that command alone to see why.")


def run_two_epochs(bench: Bench) -> dict[str, float]:
    """Train in a process of its own; what its second epoch took, in seconds."""
    from hemafast.engine.journal import column, read_rows

    with tempfile.TemporaryDirectory() as output:
        subprocess.run(training_command(bench, output), check=True, capture_output=True)
        (folder,) = Path(output).glob("2*")
        log, rows = (folder / LOG).read_text(encoding="utf-8"), read_rows(folder)
    first, second = (datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S,%f") for stamp, _ in _LINE.findall(log))
    return {
        "epoch_seconds": (second - first).total_seconds(),
        "train_images_per_second": column(rows, "train", "images_per_second")[1],
        "data_wait_share": column(rows, "train", "data_wait_share")[1],
    }


def one_round(bench: Bench, workers: dict[str, Worker], seconds: float) -> dict[str, float]:
    """The bare steps, then the run, and what the run reaches of them."""
    rates = {}
    for name, worker in workers.items():
        found = worker.run(name, seconds)
        rates[name] = found.images / found.seconds
    whole = run_two_epochs(bench)
    dataset = open_dataset(bench.settings.data)
    bare = dataset.counts(TRAIN).sum() / rates["training"] + dataset.counts(VAL).sum() / rates["validation"]
    return {
        "training_step": rates["training"],
        "validation_step": rates["validation"],
        **whole,
        "training_share": whole["train_images_per_second"] / rates["training"],
        "whole_share": float(bare) / whole["epoch_seconds"],
    }


def main(
    data: Annotated[Path, typer.Option(help="Prepared data set of real images.")] = Path("Source/prepared"),
    json_file: JsonFileOrNone = None,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    image_size: Annotated[int, typer.Option(help="Side in pixels of what the network sees.")] = 224,
    batch_size: Annotated[int, typer.Option(help="Images a step.")] = 32,
    rounds: Annotated[int, typer.Option(min=3, help="How often all is measured.")] = 3,
    seconds: Annotated[float, typer.Option(help="Least length of a measurement of a bare step.")] = 30.0,
) -> None:
    """Measure whole epochs beside bare steps; about three minutes a round for 600 images on two cores."""
    from hemafast.bench.training import step, validation

    bench = Bench(
        bench_settings(data=data, model=model, image_size=image_size, batch_size=batch_size, device="cpu", amp="off")
    )
    starts = [first_step_seconds(bench) for _ in range(1 + rounds)]
    found: list[dict[str, float]] = []
    with ExitStack() as stack:
        makes = {"training": step, "validation": validation}
        workers = {name: stack.enter_context(Worker({name: make}, bench)) for name, make in makes.items()}
        for name, worker in workers.items():
            worker.run(name, seconds)  # warm-up
        for _ in range(rounds):
            found.append(one_round(bench, workers, seconds))
            typer.echo(json.dumps(found[-1]), err=True)
    info = open_dataset(data).info
    result: dict[str, Any] = {
        "command": f"python benchmarks/end_to_end.py --model {model} --rounds {rounds}",
        "machine": choose_machine(device="cpu", amp="off", compiled="off").facts,
        "model": model,
        "image_size": image_size,
        "batch_size": batch_size,
        "precision": "fp32",
        "images": {split: int(open_dataset(data).counts(split).sum()) for split in (TRAIN, VAL)},
        "domains": list(info.domains),
        "drawn": info.drawn,
        "rounds": found,
        "first_step_seconds": spread(starts[1:]),
        "summary": {name: spread([one[name] for one in found]) for name in found[0]},
    }
    print_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """What a whole epoch reaches of its bare steps."""
    result = results["end_to_end"]
    found, images = result["summary"], result["images"]
    rows = [
        ["speed of training in a run, as a share of the bare training step", percentages(found["training_share"])],
        [
            "speed of a whole epoch (data, training, validation, checkpoints, logs), as a share of the bare steps",
            percentages(found["whole_share"]),
        ],
        ["share of the training time spent waiting for data", percentages(found["data_wait_share"])],
        ["seconds from the start of the process to the end of its first step", ranged(result["first_step_seconds"])],
    ]
    note = (
        f"`{result['command']}`, {result['precision']}, {result['image_size']} px, batch {result['batch_size']}, "
        f"{images['train']} training and {images['val']} validation images of {' and '.join(result['domains'])}. "
        f"{machine_line(result['machine'])}"
    )
    return {"end_to_end": table("| median (min to max)", rows, note)}


if __name__ == "__main__":
    typer.run(main)
