"""What the loss on the lineage, soft labels, and each part of the policy `lineage` do to the score.

    python benchmarks/lineage.py --source DIR_WITH_THE_ARCHIVES --json benchmarks/results/lineage.json

Every side is the same short training with one option changed, on the same split, from the same weights, for the same
epochs. Seeds are the outer loop. The result is written after each run, and a later call adds the seeds and sides that
are missing. Nothing here is a speed, so a busy machine changes no figure.

A score of a side is the mean over its seeds. Its interval is over the images, by the same resamples for all sides, and
so is that of its difference to the first side of its question over the seeds that both have.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from output import JsonFileAddedTo, before, machine_line, table, write_json

import hemafast as hf
from hemafast.evaluate.intervals import interval, resample
from hemafast.evaluate.lineage import mistake_distance
from hemafast.evaluate.metrics import Confusions, Labels, Scores, confusions, count_scores
from hemafast.lineage import Lineage, packaged_lineage

PRESET = "quick"
SHORT = {"image_size": 96, "epochs": 4, "freeze_stages": 4, "warmup": 0.15, "ema": 0.95, "amp": "off", "track": ()}
"""What makes the preset short: the early half frozen, smaller images, averaged weights from few epochs."""

QUESTIONS: dict[str, dict[str, dict[str, Any]]] = {
    "loss": {
        "cross-entropy": {},
        "lineage weight 0.3": {"lineage_weight": 0.3},
        "lineage weight 1": {"lineage_weight": 1.0},
        "soft labels": {"stage_temperature": 0.5},
        "both": {"lineage_weight": 0.3, "stage_temperature": 0.5},
    },
    "policy": {
        "lineage": {"policy": "lineage"},
        "lineage without shift": {"policy": "none", "symmetry": "eight", "zoom": 0.1, "stain": 0.05},
        "lineage without zoom": {"policy": "lineage", "zoom": 0.0},
        "lineage without symmetries": {"policy": "lineage", "symmetry": "none"},
        "lineage without stain": {"policy": "lineage", "stain": 0.0},
        "basic": {"policy": "basic"},
        "strong": {"policy": "strong"},
        "none": {"policy": "none"},
    },
}
"""By question, the sides and what they change; the first is what the others are compared with."""

SCORES = {
    "macro_f1": "macro-F1",
    "mistake_distance": "distance of mistakes",
    "adjacent": "taken for the stage beside",
    "within_series": "taken for another stage",
}
"""Scores, and how a table calls them. The last two are shares of the cells of the maturation series."""


def scores_of(labels: Labels, predicted: Labels, classes: Sequence[str], lineage: Lineage) -> dict[str, Scores]:
    """SCORES of all images, then of each resample; (1 + resamples,) each."""
    chunks = [
        _scores(confusions(labels, predicted, weights, len(classes)), classes, lineage)
        for weights in resample(len(labels))
    ]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in SCORES}


def _scores(confusion: Confusions, classes: Sequence[str], lineage: Lineage) -> dict[str, Scores]:
    place = np.array([lineage.stages.index(name) if name in lineage.stages else -1 for name in classes])
    cells = confusion.among(place >= 0)
    actual, answered = place[cells.actual], place[cells.predicted]
    images = np.maximum(cells.counts.sum(axis=1), 1)
    return {
        "macro_f1": count_scores(confusion)["macro_f1"],
        "mistake_distance": mistake_distance(confusion, lineage.groups(classes)[1]),
        "adjacent": cells.counts @ ((answered >= 0) & (abs(actual - answered) == 1)) / images,
        "within_series": cells.counts @ ((answered >= 0) & (actual != answered)) / images,
    }


def judged(
    labels: Sequence[int], runs: Mapping[str, Mapping[str, Sequence[int]]], classes: Sequence[str], lineage: Lineage
) -> dict[str, Any]:
    """Of each side with runs: its seeds, and its scores with intervals and differences to the first side.

    Args:
        labels: indices of the true classes.
        runs: by side and seed, indices of the predicted classes.
        classes: their names.
        lineage: how they are related.
    """
    found = {
        side: {seed: scores_of(np.array(labels), np.array(run), classes, lineage) for seed, run in seeds.items()}
        for side, seeds in runs.items()
        if seeds
    }
    first = next(iter(runs))
    return {
        side: {
            "seeds": list(seeds),
            **{name: _compared(name, seeds, found.get(first, {}), own=side == first) for name in SCORES},
        }
        for side, seeds in found.items()
    }


def _compared(
    name: str, seeds: Mapping[str, Mapping[str, Scores]], base: Mapping[str, Mapping[str, Scores]], *, own: bool
) -> dict[str, Any]:
    mean = np.mean([scores[name] for scores in seeds.values()], axis=0)
    told: dict[str, Any] = {
        "mean": float(mean[0]),
        "ci95": interval(mean).tolist(),
        "by_seed": [float(scores[name][0]) for scores in seeds.values()],
    }
    shared = [seed for seed in seeds if seed in base]
    if own or not shared:
        return told
    gain = np.mean([seeds[seed][name] - base[seed][name] for seed in shared], axis=0)
    each = [float(seeds[seed][name][0] - base[seed][name][0]) for seed in shared]
    return {**told, "gain": {"mean": float(gain[0]), "ci95": interval(gain).tolist(), "by_seed": each}}


def predicted_by(data: hf.Dataset, changes: Mapping[str, Any], seed: int, output: Path) -> tuple[list[int], list[int]]:
    """Train, and return true and predicted classes of the validation images, by their place in label order."""
    answers = hf.train(data, preset=PRESET, output=output, seed=seed, **{**SHORT, **changes}).predictions
    places = {name: place for place, name in enumerate(data.classes)}
    return [places[name] for name in answers["label"]], [places[name] for name in answers["predicted"]]


def main(
    source: Annotated[Path, typer.Option(help="Folder with real archives.")],
    json_file: JsonFileAddedTo,
    domain: Annotated[str, typer.Option(help="Domain to train on.")] = "Acevedo_20",
    seeds: Annotated[int, typer.Option(min=1, help="How many runs each side has in the end.")] = 3,
    question: Annotated[list[str] | None, typer.Option(help="loss or policy; may be repeated.")] = None,
    work: Annotated[Path | None, typer.Option(help="Where prepared data and runs are kept.")] = None,
) -> None:
    """Train every side with every seed; half a minute to two minutes a run on two idle cores."""
    if unknown := set(question or ()) - set(QUESTIONS):
        raise typer.BadParameter(f"There is no question {sorted(unknown)}. Choose from: {', '.join(QUESTIONS)}.")
    from hemafast.engine.machine import choose_machine

    with tempfile.TemporaryDirectory() as temporary:
        folder = work or Path(temporary)
        data = hf.prepare(source / f"{domain}.zip", folder / "prepared")
        if data.info.drawn:
            sys.exit(f"{source} holds drawn cells; no score on them is worth keeping.")
        result: dict[str, Any] = {
            "command": f"python benchmarks/lineage.py --domain {domain} --seeds {seeds}",
            "preset": PRESET,
            "changes": SHORT,
            "machine": choose_machine(device="cpu", amp="off", compiled="off").facts,
            "domain": domain,
            "classes": list(data.classes),
            "images": {split: int(data.counts(split).sum()) for split in ("train", "val")},
            "labels": [],
            "questions": QUESTIONS,
            "runs": {name: {side: {} for side in sides} for name, sides in QUESTIONS.items()},
        }
        earlier = before(json_file, result["machine"])
        result |= {name: earlier[name] for name in ("runs", "labels", "scores") if name in earlier}
        for seed in range(seeds):
            for name in question or QUESTIONS:
                for side, changes in QUESTIONS[name].items():
                    runs = result["runs"][name].setdefault(side, {})
                    if str(seed) in runs:
                        continue
                    result["labels"], runs[str(seed)] = predicted_by(data, changes, seed, folder / "runs")
                    scores = judged(result["labels"], result["runs"][name], data.classes, packaged_lineage())
                    result.setdefault("scores", {})[name] = scores
                    typer.echo(
                        f"{name}: {side}, seed {seed}: macro-F1 {scores[side]['macro_f1']['mean']:.3f}", err=True
                    )
                    write_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """One table for each question that has runs."""
    result = results["lineage"]
    return {f"lineage_{name}": _table(result, name, scores) for name, scores in result.get("scores", {}).items()}


def _table(result: Mapping[str, Any], question: str, scores: Mapping[str, Any]) -> str:
    first = next(iter(scores))
    rows = [
        [
            side,
            str(len(found["seeds"])),
            *(_with_interval(found[name], ".3f" if name != "mistake_distance" else ".2f") for name in SCORES),
            ""
            if side == first or "gain" not in found["macro_f1"]
            else _with_interval(found["macro_f1"]["gain"], "+.3f"),
        ]
        for side, found in scores.items()
    ]
    changes = " ".join(
        f"--{name.replace('_', '-')} {value if value != [] else 'none'}" for name, value in result["changes"].items()
    )
    note = (
        f"`{result['command']}`: `--preset {result['preset']} {changes}`, {result['images']['train']:,} training and "
        f"{result['images']['val']} validation images of {result['domain']}. Mean over the seeds (95 % interval over "
        f"the images); the gain is in macro-F1 over `{first}`, seed by seed. {machine_line(result['machine'])}"
    )
    header = " | ".join([question, "seeds", *SCORES.values(), "gain"])
    return table(header, rows, note)


def _with_interval(found: Mapping[str, Any], form: str) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:{form}} ({low:{form}} to {high:{form}})"


if __name__ == "__main__":
    typer.run(main)
