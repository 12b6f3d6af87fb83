"""Runs of the scripts beside this one, made with nothing but the public library, and found again by a second call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hemafast as hf


def trained(data: hf.Dataset, folder: Path, preset: str, seed: int, **settings: Any) -> hf.TrainedRun:
    """A run of this preset and seed on this data: one that is finished in `folder`, or a new one.

    A run that was interrupted is continued. A run on other data is left alone.
    """
    for row in hf.list_runs(folder).itertuples():
        run = hf.open_run(row.folder)
        if row.state != "running" and (run.config["preset"], run.config["seed"]) == (preset, seed):
            finished = row.state == "finished" and row.macro_f1 is not None
            found = run if finished else hf.resume(run)
            if found.metrics["data"]["fingerprint"] == data.info.fingerprint:
                return found
    return hf.train(data, preset=preset, seed=seed, output=folder, **settings)


def score(metrics: dict[str, Any], name: str) -> dict[str, Any]:
    """One score of all images with its interval, and the classes that it is a mean over."""
    pooled = metrics["pooled"]
    return {
        name: pooled[name],
        "ci95": pooled["ci95"][name],
        "images": pooled["images"],
        "classes": list(pooled["per_class"]),
    }
