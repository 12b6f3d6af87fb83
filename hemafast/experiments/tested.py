"""Score runs on held-out test images together: the outer part of a nested search."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig
from hemafast.data.dataset import open_dataset
from hemafast.evaluate.evaluate import evaluate_run, scores_folder
from hemafast.evaluate.predictions import read_predictions
from hemafast.experiments.certainty import certainty, passes_of
from hemafast.preparation.split import TEST
from hemafast.report.page import write_report
from hemafast.run_folder import PREDICTIONS


def score_on_test(runs: Sequence[Path], config: TrainConfig) -> dict[str, Any]:
    """Score each run on the test images of its data; each counts as a look.

    Args:
        runs: folders of runs that were trained on this data.
        config: where the data is, and where models run.

    Returns:
        `macro_f1`: `value`, the mean over the runs; `by_run`; `cells`, the 95 % interval for other cells of the same
        groups; `images`, how many; and `look`, what the first look is worth.

    Raises:
        HemafastError: the data has no test images, or a run is damaged.
    """
    dataset = open_dataset(config.data)
    images = dataset.images(TEST, "group")
    looks, tables = [], {}
    for run in runs:
        metrics = evaluate_run(run, split="test", device=config.device)
        folder = scores_folder(run, metrics)
        write_report(folder)
        looks.append(metrics["look"]["told"])
        tables[str(run)] = read_predictions(folder / PREDICTIONS)[0].set_index("image").loc[images["path"]]
    score = certainty(passes_of(images, tables, dataset.classes))["macro_f1"]
    return {
        "macro_f1": {"value": score["value"], "by_run": score["by_pass"], "cells": score["cells"]},
        "images": len(images),
        "look": looks[0],
    }
