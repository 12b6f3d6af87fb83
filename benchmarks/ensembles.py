"""Several seeds as one model: their mean, their mean with fitted weights, the soup of their weights, a student of them.

    python benchmarks/ensembles.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/ensembles.json

Trains three seeds of `fast` on Acevedo_20.zip, or finds those of `another_lab.py` in the same `--work`, makes one model
of them in each way, and scores all at home and in the laboratories of `another_lab.py`. Differences are to the mean
score of the seeds alone, by the same resamples of the images. Images/s count seconds of the processor, which a busy
machine changes little; all models take turns. The result is written after each side, and a later call adds what is
missing.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import typer
from another_lab import HOME, LABS, cell, described, prepared
from library import evaluated_on, trained
from output import JsonFile, machine_line, table, write_json

import hemafast as hf
from hemafast.deploy.engines import rates_of
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.evaluate import scores_folder
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import Scores, confusions, count_scores
from hemafast.evaluate.predictions import read_predictions
from hemafast.run_folder import PREDICTIONS

PRESET = "fast"
METHODS = ("mean", "fitted", "soup")
STUDENT = "student of the mean"


def main(
    source: Annotated[Path, typer.Option(help="Folder with the archives.")],
    json_file: JsonFile,
    seed: Annotated[list[int], typer.Option(help="Seed of a member; may be repeated.")] = [1, 2, 3],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Where prepared data and runs are kept.")] = Path("runs/another_lab"),
    epochs: Annotated[int | None, typer.Option(help="Fewer epochs, to try the script.")] = None,
) -> None:
    """Train, combine, teach, score everywhere, and write the result after each side."""
    home, labs = prepared(source, work / "data")
    changes = {} if epochs is None else {"epochs": epochs}
    runs = [trained(home, work / "runs", PRESET, number, **changes) for number in seed]
    alone = [everywhere(run, labs) for run in runs]
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/ensembles.py", *_options(seed, epochs)]),
        "machine": machine_facts("cpu"),
        "hemafast": hf.__version__,
        "data": described(home, labs),
        "seeds": {str(number): plain(found) for number, found in zip(seed, alone, strict=True)},
        "alone": {name: _spread([found[name][0] for found in alone]) for name in alone[0]},
        "sides": {},
    }
    sides = {f"seed {seed[0]}": runs[0]}
    for method in METHODS:
        made = combined(runs, method, work / "ensembles")
        sides[method] = made
        result["sides"][method] = {"scores": plain(everywhere(made, labs), alone), "made": told(made)}
        write_json(result, json_file)
    result["images_per_cpu_second"] = rates(sides)
    write_json(result, json_file)
    student = trained(home, work / "students", PRESET, seed[0], teacher=sides["mean"].folder, **changes)
    result["sides"][STUDENT] = {
        "scores": plain(everywhere(student, labs), alone),
        "made": {"seed": seed[0], "teacher": dict(student.metrics["training"]["teacher"])},
    }
    write_json(result, json_file)


def _options(seeds: Sequence[int], epochs: int | None) -> list[str]:
    words = [word for number in seeds for word in ("--seed", str(number))]
    return words + ([] if epochs is None else ["--epochs", str(epochs)])


def combined(runs: Sequence[hf.TrainedRun], method: Any, folder: Path) -> hf.TrainedRun:
    """The ensemble of these runs in `folder`, or a new one."""
    wanted = {str(run.folder.absolute()) for run in runs}
    for row in hf.list_runs(folder).itertuples():
        run = hf.open_run(str(row.folder))
        made = run.metrics["model"]["combined"] if row.macro_f1 is not None else None
        if made and made["method"] == method and set(made["runs"]) <= wanted:
            return run
    return runs[0].ensemble(*runs[1:], method=method, output=folder, device="cpu")


def told(run: hf.TrainedRun) -> dict[str, Any]:
    """What was measured when an ensemble was made: weights, cost, gain on the images that chose nothing."""
    from hemafast.run_folder import read_ensemble

    found = read_ensemble(run.folder)
    members = [{name: one[name] for name in ("weight", "macro_f1", "images_per_second")} for one in found["members"]]
    kept = ("fitted_on", "images", "cost", "images_per_second", "verdict")
    return {"members": members, **{name: found[name] for name in kept}}


def everywhere(run: hf.TrainedRun, labs: Mapping[str, hf.Dataset]) -> dict[str, Scores]:
    """Macro-F1 by laboratory, of all images and then of each resample, (1 + resamples,)."""
    folders = {HOME: run.folder}
    for name, data in labs.items():
        folders[name] = scores_folder(run.folder, dict(evaluated_on(run, data, LABS[name].class_map)))
    return {name: _resampled(folder) for name, folder in folders.items()}


def _resampled(folder: Path) -> Scores:
    found, classes, _ = read_predictions(folder / PREDICTIONS)
    places = {name: place for place, name in enumerate(classes)}
    labels, predicted = (np.array([places[name] for name in found[column]]) for column in ("label", "predicted"))
    parts = [
        count_scores(confusions(labels, predicted, weights, len(classes)))["macro_f1"]
        for weights in resample(len(labels))
    ]
    return np.concatenate(parts)


def plain(found: Mapping[str, Scores], alone: Sequence[Mapping[str, Scores]] = ()) -> dict[str, Any]:
    """Scores with intervals, and where there are others the difference to their mean."""
    return {name: _plain(score, [one[name] for one in alone]) for name, score in found.items()}


def _plain(score: Scores, others: Sequence[Scores]) -> dict[str, Any]:
    said: dict[str, Any] = {"macro_f1": float(score[0]), "ci95": interval(score).tolist()}
    if others:
        gain = score - np.mean(others, axis=0)
        said["difference"] = {"macro_f1": float(gain[0]), "ci95": interval(gain).tolist()}
    return said


def _spread(values: Sequence[float]) -> dict[str, float]:
    numbers = [*map(float, values)]
    return {"mean": mean(numbers), "min": min(numbers), "max": max(numbers)}


def rates(sides: Mapping[str, hf.TrainedRun]) -> dict[str, float]:
    """Images per second of the processor of each model; they take turns."""
    models = {name: run.model(device="cpu") for name, run in sides.items()}
    (size,) = {model.card.image_size for model in models.values()}
    return rates_of({name: model.logits for name, model in models.items()}, size, time.process_time)[0]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Macro-F1 of each side at home and elsewhere with its gain over the seeds alone, and what it costs."""
    result = results["ensembles"]
    labs, rate = [*result["data"]], result.get("images_per_cpu_second", {})
    one = next(iter(rate.values()), None)
    rows = [["one seed", *(cell(result["alone"][name]) for name in labs), _rate(one)]]
    for side, found in result["sides"].items():
        own = one if side == STUDENT else rate.get(side)
        rows.append([side, *(_gained(found["scores"][name]) for name in labs), _rate(own)])
    fitted = result["sides"]["fitted"]["made"]["fitted_on"]
    note = (
        f"Macro-F1; one seed: mean of {len(result['seeds'])} seeds of `{PRESET}` (least to most); below: difference "
        "to that mean with its 95 % interval, by the same resamples of the images. Weights of `fitted` were fitted on "
        f"{fitted} of the validation images of {HOME}. Images/s count seconds of one core. `{result['command']}`. "
        f"{machine_line(result['machine'])}"
    )
    return {"ensembles": table(" | ".join(["model", f"{HOME}, at home", *labs[1:], "images/s"]), rows, note)}


def _gained(found: Mapping[str, Any]) -> str:
    low, high = found["difference"]["ci95"]
    return f"**{found['macro_f1']:.3f}** {found['difference']['macro_f1']:+.3f} ({low:+.3f} to {high:+.3f})"


def _rate(rate: float | None) -> str:
    return "not measured" if rate is None else f"{rate:,.0f}"


if __name__ == "__main__":
    typer.run(main)
