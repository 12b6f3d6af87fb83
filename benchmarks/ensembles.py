"""Several models as one: seeds, folds, snapshots; their mean, fitted weights, the best of them, soup, a student.

    python benchmarks/ensembles.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/ensembles.json

Trains three seeds of `fast` on Acevedo_20.zip, or finds those of `another_lab.py` in the same `--work`, and scores them
and what is made of them at home and in the laboratories of `another_lab.py`. Mean, fitted weights and the best two are
taken of the predictions of the seeds, which is what the ensemble of them answers (a test compares). The soup, the
snapshots of one seed, and with `--student` a network that learns from the mean, are models that are evaluated. With
`--folds`, so many models are trained that leave out one fold each; no image at home is held out for all of them.
Differences are to the mean score of the seeds alone, by the same resamples of the images. Images/s count seconds of the
processor, which a busy machine changes little. The result is written after each side, and a later call adds what is
missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from another_lab import HOME, LABS, cell, described, prepared
from library import evaluated_on, trained
from output import JsonFile, machine_line, table, write_json

import hemafast as hf
from hemafast.deploy.weigh import best_members, fit_weights, worth_their_cost
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.metrics import Labels, Scores, confusions, count_scores
from hemafast.evaluate.predictions import read_predictions
from hemafast.run_folder import PREDICTIONS, read_ensemble

PRESET = "fast"
BEST_TWO, SNAPSHOTS = "best, two at most", "snapshots"
STUDENT = "student of the mean"
KEPT = 5
"""Checkpoints of the run whose snapshots are combined."""


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What a model says of the images of one laboratory."""

    labels: Labels
    probabilities: npt.NDArray[np.float64]
    """(images, classes), calibrated."""
    chooses: npt.NDArray[np.bool_]
    """(images,): those that temperatures were fitted on, and that weights may be fitted on."""

    def resampled(self) -> Scores:
        """Macro-F1 of all images and then of each resample, (1 + resamples,)."""
        predicted = self.probabilities.argmax(axis=1).astype(np.int64)
        classes = self.probabilities.shape[1]
        parts = [
            count_scores(confusions(self.labels, predicted, weights, classes))["macro_f1"]
            for weights in resample(len(self.labels))
        ]
        return np.concatenate(parts)


ByLab = dict[str, Answers]


def main(
    source: Annotated[Path, typer.Option(help="Folder with the archives.")],
    json_file: JsonFile,
    seed: Annotated[list[int], typer.Option(help="Seed of a member; may be repeated.")] = [1, 2, 3],  # noqa: B006
    work: Annotated[Path, typer.Option(help="Where prepared data and runs are kept.")] = Path("runs/another_lab"),
    student: Annotated[bool, typer.Option("--student", help="Train a student of the mean too.")] = False,
    folds: Annotated[int, typer.Option(min=0, help="Train so many folds too, and take their mean.")] = 0,
) -> None:
    """Train, combine, teach, score everywhere, and write the result after each side."""
    home, labs = prepared(source, work / "data")
    runs = [trained(home, work / "runs", PRESET, number) for number in seed]
    alone = [everywhere(run, labs) for run in runs]
    scores = [{name: one.resampled() for name, one in found.items()} for found in alone]
    options = [word for number in seed for word in ("--seed", str(number))] + ["--student"] * student
    options += ["--folds", str(folds)] if folds else []
    result: dict[str, Any] = {
        "command": shlex.join(["python", "benchmarks/ensembles.py", *options]),
        "machine": machine_facts("cpu"),
        "hemafast": hf.__version__,
        "data": described(home, labs),
        "seeds": {str(number): plain(found) for number, found in zip(seed, scores, strict=True)},
        "alone": {name: _spread([found[name][0] for found in scores]) for name in scores[0]},
        "sides": {},
    }

    def add(side: str, found: ByLab, **more: Any) -> None:
        own = {name: one.resampled() for name, one in found.items()}
        result["sides"][side] = {"scores": plain(own, scores), **more}
        write_json(result, json_file)

    add("mean", averaged(alone, [1 / len(runs)] * len(runs)))
    weights = weights_of([found[HOME] for found in alone])
    fitted_on = int(alone[0][HOME].chooses.sum())
    add("fitted", averaged(alone, weights), weights=weights, fitted_on=fitted_on)
    two = best_two([found[HOME] for found in alone])
    add(BEST_TWO, averaged(alone, two), weights=two)
    soup = combined(runs, "soup", work / "ensembles")
    result["images_per_cpu_second"] = rates(read_ensemble(soup.folder), {"fitted": weights, BEST_TWO: two})
    add("soup", everywhere(soup, labs))
    kept = trained(home, work / "snapshots", PRESET, seed[0], keep=KEPT)
    snapshots = combined([kept], "snapshots", work / "snapshots_combined")
    result["images_per_cpu_second"][SNAPSHOTS] = read_ensemble(snapshots.folder)["images_per_second"]
    add(SNAPSHOTS, everywhere(snapshots, labs))
    if folds:
        cut = hf.prepare(source / f"{HOME}.zip", work / "data" / f"{folds} folds", folds=folds)
        own = [trained(cut, work / f"fold {number}", PRESET, seed[0], fold=number) for number in range(folds)]
        result["images_per_cpu_second"][f"{folds} folds"] = result["images_per_cpu_second"]["one seed"] / folds
        add(f"{folds} folds", averaged([elsewhere(run, labs) for run in own], [1 / folds] * folds))
    if student:
        teacher = combined(runs, "mean", work / "ensembles")
        taught = trained(home, work / "students", PRESET, seed[0], teacher=teacher.folder)
        told = dict(taught.metrics["training"]["teacher"]) | {"model": teacher.folder.name}  # no path of this machine
        add(STUDENT, everywhere(taught, labs), teacher=told)


def combined(runs: Sequence[hf.TrainedRun], method: Any, folder: Path) -> hf.TrainedRun:
    """The ensemble of these runs in `folder`, or a new one."""
    wanted = {str(run.folder.absolute()) for run in runs}
    for row in hf.list_runs(folder).itertuples():
        run = hf.open_run(str(row.folder))
        made = run.metrics["model"]["combined"] if row.macro_f1 is not None else None
        if made and made["method"] == method and set(made["runs"]) <= wanted:
            return run
    return runs[0].ensemble(*runs[1:], method=method, output=folder, device="cpu")


def everywhere(run: hf.TrainedRun, labs: Mapping[str, hf.Dataset]) -> ByLab:
    """What a run says of the validation images at home, and of all images of the other laboratories."""
    return {HOME: _answers(run.folder), **elsewhere(run, labs)}


def elsewhere(run: hf.TrainedRun, labs: Mapping[str, hf.Dataset]) -> ByLab:
    """What a run says of all images of the other laboratories."""
    from hemafast.evaluate.evaluate import scores_folder  # imports torch, which tables do without

    found = {name: evaluated_on(run, data, LABS[name].class_map) for name, data in labs.items()}
    return {name: _answers(scores_folder(run.folder, dict(one))) for name, one in found.items()}


def _answers(folder: Path) -> Answers:
    from hemafast.evaluate.evaluate import FITTED

    found, classes, probabilities = read_predictions(folder / PREDICTIONS)
    labels = np.array([classes.index(name) for name in found["label"]], dtype=np.int64)
    return Answers(labels, probabilities, (found["part"] == FITTED).to_numpy(dtype=np.bool_))


def averaged(found: Sequence[ByLab], weights: Sequence[float]) -> ByLab:
    """The weighted mean of the answers of several models."""
    return {
        name: replace(first, probabilities=np.tensordot(weights, [one[name].probabilities for one in found], axes=1))
        for name, first in found[0].items()
    }


def weights_of(at_home: Sequence[Answers]) -> list[float]:
    """Weights of models, fitted as `hemafast ensemble --method fitted` does; 0 for those left out."""
    places, weights = worth_their_cost(fit_weights(*_held_out(at_home)))
    kept = dict(zip(places, weights.tolist(), strict=True))
    return [kept.get(place, 0.0) for place in range(len(at_home))]


def best_two(at_home: Sequence[Answers]) -> list[float]:
    """Weights of models, those that `hemafast ensemble --max-cost 2x` takes and others, which have 0."""
    taken = best_members(*_held_out(at_home), [1.0] * len(at_home), 2.0)
    return [1 / len(taken) if place in taken else 0.0 for place in range(len(at_home))]


def _held_out(at_home: Sequence[Answers]) -> tuple[npt.NDArray[np.float64], Labels]:
    """What models say of the images that choose among them, (models, images, classes), and the labels of these."""
    chooses = at_home[0].chooses
    return np.stack([one.probabilities[chooses] for one in at_home]), at_home[0].labels[chooses]


def rates(made: Mapping[str, Any], chosen: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Images per second of the processor of each side, from those of the members; a soup costs as much as one.

    `chosen` has the weights of the members of sides that may leave some out.
    """
    costs = [1 / one["images_per_second"] for one in made["members"]]
    return {
        "one seed": 1 / mean(costs),
        "mean": 1 / sum(costs),
        "soup": made["images_per_second"],
        **{
            side: 1 / sum(cost for cost, weight in zip(costs, weights, strict=True) if weight)
            for side, weights in chosen.items()
        },
    }


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


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Macro-F1 of each side at home and elsewhere with its gain over the seeds alone, and what it costs."""
    result = results["ensembles"]
    labs, rate = [*result["data"]], result.get("images_per_cpu_second", {})
    one = rate.get("one seed")
    rows = [["one seed", *(cell(result["alone"][name]) for name in labs), _rate(one)]]
    for side, found in result["sides"].items():
        own = rate.get(side, one)  # a student is a network like each of them
        gains = (_gained(found["scores"][name]) if name in found["scores"] else "none held out" for name in labs)
        rows.append([side, *gains, _rate(own)])
    fitted = result["sides"]["fitted"]["fitted_on"]
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
