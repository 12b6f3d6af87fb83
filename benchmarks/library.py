"""Runs of the scripts beside this one, made with nothing but the public library, and found again by a second call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hemafast as hf


def trained(data: hf.Dataset, folder: Path, preset: str, seed: int, **settings: Any) -> hf.TrainedRun:
    """A run of this preset and seed on this data: the one that is in `folder`, continued if need be, or a new one."""
    for row in hf.list_runs(folder).itertuples():
        run = hf.open_run(str(row.folder))
        same = (run.config["preset"], run.config["seed"], run.config["data"]) == (preset, seed, str(data.folder))
        if not same or row.state == "running":
            continue
        if row.state != "finished" or row.macro_f1 is None:
            return hf.resume(run)
        if run.metrics["data"]["fingerprint"] == data.info.fingerprint:
            return run
    made: hf.TrainedRun = hf.train(data, preset=preset, seed=seed, output=folder, **settings)
    return made


def evaluated_on(run: hf.TrainedRun, data: hf.Dataset, class_map: Mapping[str, str]) -> Mapping[str, Any]:
    """Scores of a run on all images of other data: those in its folder, or new ones."""
    for file in sorted(run.folder.glob("evaluations/*/metrics.json")):
        metrics = hf.TrainedRun(file.parent).metrics
        same = (metrics["data"]["fingerprint"], metrics["split"]) == (data.info.fingerprint, "all")
        if same and metrics["folding"]["class_map"] == dict(class_map) and _newer(file, run):
            return metrics
    return run.evaluate(data, split="all", class_map=class_map)


def _newer(file: Path, run: hf.TrainedRun) -> bool:
    """Whether scores are of the weights and the calibration that the run has now."""
    return file.stat().st_mtime >= (run.folder / "calibration.json").stat().st_mtime


def scored(metrics: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A score of all images with its interval, and the classes that it is a mean over."""
    pooled = metrics["pooled"]
    return {
        name: pooled[name],
        "ci95": pooled["ci95"][name],
        "images": pooled["images"],
        "classes": list(pooled["per_class"]),
        "left_out": metrics["folding"]["left_out"],
    }
