"""All scores of 10,000 images with 1,000 bootstrap resamples, beside scikit-learn, resample by resample.

    python benchmarks/scores.py --run runs/NAME --json benchmarks/results/scores.json

The answers are those of a run that was evaluated, drawn with replacement until there are as many as asked for.
scikit-learn computes the same scores (accuracy, balanced accuracy, three F1, Matthews, kappa, top-2, log loss, AUROC of
each class; no calibration error, which it does not have) of one resample at a time; a few tell what each costs.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFileOrNone, machine_line, print_json, times

from hemafast.bench.result import spread
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.intervals import RESAMPLES
from hemafast.evaluate.predictions import read_predictions
from hemafast.run_folder import PREDICTIONS

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.float64]


def score_with_scikit_learn(labels: Labels, probabilities: Probabilities) -> list[float]:
    """The same scores of one set of images."""
    from sklearn import metrics

    classes, predicted = range(probabilities.shape[1]), probabilities.argmax(axis=1)
    there = np.unique(labels)
    found = [
        metrics.accuracy_score(labels, predicted),
        metrics.balanced_accuracy_score(labels, predicted),
        *(
            metrics.f1_score(labels, predicted, labels=there, average=average, zero_division=0)
            for average in ("macro", "micro", "weighted")
        ),
        metrics.matthews_corrcoef(labels, predicted),
        metrics.cohen_kappa_score(labels, predicted),
        metrics.top_k_accuracy_score(labels, probabilities, k=2, labels=classes),
        metrics.log_loss(labels, probabilities, labels=classes),
    ]
    return found + [metrics.roc_auc_score(labels == label, probabilities[:, label]) for label in there]


def seconds_of(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(
    run: Annotated[Path, typer.Option(help="Run folder that was evaluated.")],
    json_file: JsonFileOrNone = None,
    images: Annotated[int, typer.Option(help="How many to score.")] = 10_000,
    rounds: Annotated[int, typer.Option(min=3, help="How often both are measured.")] = 5,
    resamples: Annotated[int, typer.Option(help="Resamples that scikit-learn scores in a round.")] = 10,
) -> None:
    """Measure both, interleaved; about a minute."""
    from hemafast.evaluate.scores import score

    table, classes, probabilities = read_predictions(run / PREDICTIONS)
    generator = np.random.default_rng(0)
    rows = generator.integers(0, len(table), images)
    labels = np.array([classes.index(label) for label in table["label"]])[rows]
    probabilities = probabilities[rows] / probabilities[rows].sum(axis=1, keepdims=True)

    def theirs() -> None:
        for _ in range(resamples):
            drawn = generator.integers(0, images, images)
            score_with_scikit_learn(labels[drawn], probabilities[drawn])

    found: dict[str, list[float]] = {"hemafast": [], "scikit-learn": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of classes without images
        score(labels, probabilities, classes)  # warm-up, as is the next line
        score_with_scikit_learn(labels, probabilities)
        for _ in range(rounds):
            found["hemafast"].append(seconds_of(lambda: score(labels, probabilities, classes)))
            found["scikit-learn"].append(seconds_of(theirs) / resamples * RESAMPLES)
    result: dict[str, Any] = {
        "command": f"python benchmarks/scores.py --images {images} --rounds {rounds} --resamples {resamples}",
        "machine": machine_facts("cpu"),
        "images": images,
        "classes": len(classes),
        "resamples": RESAMPLES,
        "resamples_of_scikit_learn": resamples,
        "seconds": {name: spread(values) for name, values in found.items()},
        "ratio": spread([b / a for a, b in zip(*found.values(), strict=True)]),
    }
    print_json(result, json_file)


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """The time that the scores of many resamples take, as a sentence."""
    result = results["scores"]
    ours, theirs = result["seconds"]["hemafast"], result["seconds"]["scikit-learn"]
    said = (
        f"All scores of {result['images']:,} images in {result['classes']} classes with {result['resamples']:,} "
        f"resamples take **{ours['median']:.2f} s** ({ours['min']:.2f} to {ours['max']:.2f}). Extrapolated from "
        f"{result['resamples_of_scikit_learn']} resamples, scikit-learn would take {theirs['median']:.0f} s: "
        f"{times(result['ratio'], 0)}. `{result['command']}`, {machine_line(result['machine'])}"
    )
    return {"scores": said}


if __name__ == "__main__":
    typer.run(main)
