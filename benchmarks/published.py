"""A published split of Acevedo_20, with the score beside the published one.

    python benchmarks/published.py --archive Acevedo_20.zip --split wenderoth_acevedo_train.csv \
        --split wenderoth_acevedo_test.csv --preset fast --json benchmarks/results/published.json

The files are those of Wenderoth et al., Computer Methods and Programs in Biomedicine 260:108560 (2024),
github.com/IPMI-ICNS-UKE/Haematological-Single-Cell-Image-Classification. Their classes are coarser than the archive's
folders: immature granulocytes are one class, and so are neutrophils. Images that the files list and the archive lacks
are counted; with the whole archive the command is the same. Validation images are drawn from the training images, and
the test images are scored once. A second call with the same `--work` reuses a finished run, and continues one that was
stopped.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from library import scored, trained  # scripts beside this one
from output import JsonFile, machine_line, table, write_json

import hemafast as hf
from hemafast.engine.machine import machine_facts

CLASS_MAP = {
    "promyelocyte": "immature_granulocyte",
    "myelocyte": "immature_granulocyte",
    "metamyelocyte": "immature_granulocyte",
    "neutrophil_banded": "neutrophil",
    "neutrophil_segmented": "neutrophil",
}
PUBLISHED = {
    "source": "Wenderoth et al. 2024, Computer Methods and Programs in Biomedicine 260:108560",
    "images": {"train": 11_858, "test": 5_083},
    "classes": 8,
    "balanced_accuracy": {"2,000 labels a class": 0.97, "50 labels a class": 0.91},
    "how": "features of a network pretrained on 171,000 bone-marrow cells, then a support vector machine",
}
"""All images and eight classes: the eighth, platelets, is not in the challenge's archive."""
SCORE = "balanced_accuracy"


def main(
    archive: Annotated[Path, typer.Option(help="Acevedo_20.zip, or a part of it.")],
    split: Annotated[list[Path], typer.Option(help="File of the published split, one for each side.")],
    json_file: JsonFile,
    preset: Annotated[str, typer.Option(help="Preset to train with.")] = "fast",
    seed: Annotated[list[int], typer.Option(help="Seed of a training; may be repeated.")] = [1],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Where prepared data and runs are kept.")] = Path("runs/published"),
    epochs: Annotated[int | None, typer.Option(help="Fewer epochs, to try the script.")] = None,
) -> None:
    """Prepare with the split, train, score the test images, and write the result."""
    data = hf.prepare(archive, work / "data", classes="from-data", class_map=CLASS_MAP, split_file=tuple(split))
    if data.info.drawn:
        sys.exit(f"{archive} holds drawn cells; no score on them is worth keeping.")
    changes = {} if epochs is None else {"epochs": epochs}
    runs = []
    for number in seed:
        run = trained(data, work / "runs", preset, number, **changes)
        training = run.metrics["training"]
        runs.append(
            {
                "seed": training["seed"],
                "epochs": training["epochs"],
                "seconds": training["total_seconds"],
                "images_per_second": training["train_images_per_second"],
                "started_from": run.metrics["model"]["started_from"],
                "test": scored(run.evaluate(split="test"), SCORE),
            }
        )
    result = {
        "command": shlex.join(["python", "benchmarks/published.py", *_options(preset, seed, epochs)]),
        "machine": machine_facts("cpu"),
        "hemafast": hf.__version__,
        "images": {name: sum(map(sum, _counts(data, name))) for name in data.info.counts},
        "classes": data.classes,
        "notes": list(data.info.notes),
        "preset": preset,
        "runs": runs,
        "published": PUBLISHED,
    }
    write_json(result, json_file)


def _options(preset: str, seeds: Sequence[int], epochs: int | None) -> list[str]:
    words = ["--preset", preset, *(word for number in seeds for word in ("--seed", str(number)))]
    return words + ([] if epochs is None else ["--epochs", str(epochs)])


def _counts(data: hf.Dataset, split: str) -> list[list[int]]:
    return [list(labels.values()) for labels in data.info.counts[split].values()]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Balanced accuracy on the published test images, beside the published figures."""
    result, published = results["published"], results["published"]["published"]
    images = result["images"]
    sides = [f"{images[name]:,}" for name in ("train", "val", "test")]
    rows = []
    for run in result["runs"]:
        low, high = run["test"]["ci95"]
        score = f"**{run['test'][SCORE]:.3f}** ({low:.3f} to {high:.3f})"
        rows.append([f"`{result['preset']}`, seed {run['seed']}", score, f"{len(run['test']['classes'])}", *sides])
    whole = [f"{published['images']['train']:,}", "", f"{published['images']['test']:,}"]
    rows += [
        [f"published, {labels}", f"about {value:.2f}", f"{published['classes']}", *whole]
        for labels, value in published[SCORE].items()
    ]
    note = (
        f"Published: {published['source']}; {published['how']}. `{result['command']}`. "
        f"{machine_line(result['machine'])}"
    )
    header = "model | balanced accuracy on test images | classes | training | validation | test"
    return {"published": table(header, rows, note)}


if __name__ == "__main__":
    typer.run(main)
