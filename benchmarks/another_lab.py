"""Train in one laboratory, test there and in others that the model has never seen.

    python benchmarks/another_lab.py --source DIR_WITH_THE_ARCHIVES --preset fast --seed 1 --seed 2 --seed 3 \
        --json benchmarks/results/another_lab.json

Trains on Acevedo_20.zip. Each other archive in `--source` (Matek_19.zip, BCCD.zip, Tecom.zip) is only tested on, with
all of its images and no word about its scale. Scores are macro-F1 over the classes that the laboratory has and that the
model had training images of; neutrophils count as one class where the laboratory does not tell them apart. A second
call with the same `--work` reuses finished runs, and continues one that was stopped.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer
from library import evaluated_on, scored, trained  # scripts beside this one
from output import JsonFile, machine_line, table, write_json

import hemafast as hf
from hemafast.engine.machine import machine_facts

HOME = "Acevedo_20"
SCORE = "macro_f1"
_ONE_NEUTROPHIL = {"neutrophil_banded": "neutrophil_segmented"}


@dataclass(frozen=True)
class Lab:
    """An archive to test on."""

    prepared_by: Mapping[str, Any] = field(default_factory=dict)
    """Settings of `hf.prepare`: what its names mean, and nothing else."""
    class_map: Mapping[str, str] = field(default_factory=dict)
    """Classes that it does not tell apart, or that the model had no training images of."""


LABS = {
    "Matek_19": Lab(class_map={"myeloblast": ""}),
    "BCCD": Lab(
        prepared_by={"class_map": {"Lymphocyte": "lymphocyte_typical", "Neutrophil": "neutrophil_segmented"}},
        class_map=_ONE_NEUTROPHIL,
    ),
    "Tecom": Lab(
        prepared_by={
            "labels": "Class Labels of Dataset 1.csv",
            "class_map": {
                "1": "neutrophil_segmented",
                "2": "lymphocyte_typical",
                "3": "monocyte",
                "4": "eosinophil",
                "5": "basophil",
            },
        },
        class_map=_ONE_NEUTROPHIL,
    ),
}


def main(
    source: Annotated[Path, typer.Option(help="Folder with the archives.")],
    json_file: JsonFile,
    preset: Annotated[list[str], typer.Option(help="Preset to train with; may be repeated.")] = ["fast"],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Seed of a training; may be repeated.")] = [1, 2, 3],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Where prepared data and runs are kept.")] = Path("runs/another_lab"),
    epochs: Annotated[int | None, typer.Option(help="Fewer epochs, to try the script.")] = None,
) -> None:
    """Prepare, train, evaluate everywhere, and write the result after each run."""
    home, labs = prepared(source, work / "data")
    changes = {} if epochs is None else {"epochs": epochs}
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/another_lab.py", *_options(preset, seed, epochs)]),
        "machine": machine_facts("cpu"),
        "hemafast": hf.__version__,
        "data": described(home, labs),
        "presets": {},
    }
    for name in preset:
        runs: list[dict[str, Any]] = []
        for number in seed:
            runs.append(everywhere(trained(home, work / "runs", name, number, **changes), labs))
            result["presets"][name] = {"runs": runs, "means": means(runs)}
            write_json(result, json_file)


def _options(presets: Sequence[str], seeds: Sequence[int], epochs: int | None) -> list[str]:
    words = [word for name in presets for word in ("--preset", name)]
    words += [word for number in seeds for word in ("--seed", str(number))]
    return words + ([] if epochs is None else ["--epochs", str(epochs)])


def prepared(source: Path, folder: Path) -> tuple[hf.Dataset, dict[str, hf.Dataset]]:
    """Home and the other laboratories by name, as far as `source` holds them, prepared in `folder` unless they are."""
    home = hf.prepare(source / f"{HOME}.zip", folder / HOME)
    labs = {
        name: hf.prepare(source / f"{name}.zip", folder / name, **lab.prepared_by)
        for name, lab in LABS.items()
        if (source / f"{name}.zip").is_file()
    }
    if any(data.info.drawn for data in (home, *labs.values())):
        sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
    return home, labs


def described(home: hf.Dataset, labs: Mapping[str, hf.Dataset]) -> dict[str, dict[str, Any]]:
    """What a result says of its data, by laboratory."""
    return {name: _described(LABS.get(name, Lab()), data) for name, data in {HOME: home, **labs}.items()}


def _described(lab: Lab, data: hf.Dataset) -> dict[str, Any]:
    return {
        "fingerprint": data.info.fingerprint,
        "um_per_pixel": {domain: found.um_per_pixel for domain, found in data.info.domains.items()},
        "prepared_by": dict(lab.prepared_by),
        "class_map": dict(lab.class_map),
    }


def everywhere(run: hf.TrainedRun, labs: Mapping[str, hf.Dataset]) -> dict[str, Any]:
    """The scores of one run at home, on validation images, and on all images of the other laboratories."""
    own = run.metrics
    scores = {HOME: scored(own, SCORE)}
    for name, data in labs.items():
        scores[name] = scored(evaluated_on(run, data, LABS[name].class_map), SCORE)
    training = own["training"]
    return {
        "seed": training["seed"],
        "epochs": training["epochs"],
        "seconds": training["total_seconds"],
        "images_per_second": training["train_images_per_second"],
        "started_from": own["model"]["started_from"],
        "scores": scores,
    }


def means(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """By laboratory, the mean over seeds and its extremes; and the mean over the unseen laboratories of each seed."""
    by_lab = {name: [run["scores"][name][SCORE] for run in runs] for name in runs[0]["scores"]}
    unseen = [mean(scores) for scores in zip(*(by_lab[name] for name in by_lab if name != HOME), strict=True)]
    return {name: _spread(values) for name, values in (by_lab | ({"unseen": unseen} if unseen else {})).items()}


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": mean(values), "min": min(values), "max": max(values)}


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Macro-F1 of each preset at home, in each laboratory, and on the mean of the unseen ones."""
    measured = [results["another_lab"]]
    first = measured[0]
    names = [*first["data"], "unseen"]
    rows = [
        [preset, str(len(found["runs"])), *(cell(found["means"][name]) for name in names)]
        for result in measured
        for preset, found in result["presets"].items()
    ]
    scores = next(iter(first["presets"].values()))["runs"][0]["scores"]
    counts = (f"{name} {len(one['classes'])} classes, {one['images']:,} images" for name, one in scores.items())
    made = " ".join(f"`{result['command']}`: {machine_line(result['machine'])}" for result in measured)
    note = (
        "Macro-F1, mean of the seeds (least to most); unseen: mean over the laboratories that the model has never "
        f"seen. {'; '.join(counts)}. {made}"
    )
    return {"another_lab": table(" | ".join(["preset", "seeds", f"{HOME}, at home", *names[1:]]), rows, note)}


def cell(found: Mapping[str, float]) -> str:
    """A mean with its extremes."""
    least, most = found["min"], found["max"]
    return f"**{found['mean']:.3f}**" + (f" ({least:.3f} to {most:.3f})" if least < most else "")


if __name__ == "__main__":
    typer.run(main)
