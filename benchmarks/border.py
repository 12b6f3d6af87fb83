"""How often a classifier that sees only the border of an image names its domain, under several policies.

    python benchmarks/border.py Acevedo/prepared Matek/prepared --json benchmarks/results/border.json

A model can learn the border instead of the cell. Training images of each data set, as many of each as of the smallest,
are loaded as a network sees them; mean and standard deviation of each channel in the outer eighth are all that a random
forest gets to tell the data sets apart. Accuracy is of cross-validation, chance is 1 / data sets. Refuses drawn cells.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFile, table, write_json

import hemafast as hf
from hemafast.errors import HemafastError

if TYPE_CHECKING:  # the tables need no torch
    from hemafast.data.augment import Policy

SIZE = 128
_RING = SIZE // 8


def sides() -> dict[str, Policy]:
    """The policies that are compared, by name."""
    from hemafast.data.augment import POLICIES

    robust = replace(POLICIES["robust"], standardize=True)
    return {
        "none": POLICIES["none"],
        "basic": POLICIES["basic"],
        "background of every image": replace(POLICIES["basic"], background=1.0),
        "robust, standardized": robust,
        "robust, standardized, background of every image": replace(robust, background=1.0),
    }


def main(
    data: Annotated[list[Path], typer.Argument(help="Prepared data sets, one of each laboratory.")],
    json_file: JsonFile,
    seeds: Annotated[int, typer.Option(min=1, help="Draws of augmentation and images.")] = 3,
) -> None:
    """Measure each policy, and write the result."""
    datasets = [hf.open_dataset(folder) for folder in data]
    for one in datasets:
        if one.info.drawn:
            raise HemafastError(f"{one.folder} holds drawn cells.", "No figure on them is worth keeping.")
    found = {
        name: [_accuracy([_borders(one, policy, seed) for one in datasets], seed) for seed in range(seeds)]
        for name, policy in sides().items()
    }
    names = ["+".join(one.domains) for one in datasets]
    command = shlex.join(["python", "benchmarks/border.py", *names])
    write_json({"command": command, "domains": names, "seeds": seeds, "accuracy": found}, json_file)


def _borders(data: hf.Dataset, policy: Policy, seed: int) -> npt.NDArray[np.float64]:
    """(training images, 6): mean and standard deviation of each channel in the ring along the border."""
    inner = slice(_RING, -_RING)
    ring = np.ones((SIZE, SIZE), dtype=bool)
    ring[inner, inner] = False
    found = []
    for images, _ in data.loader(policy=policy, size=SIZE, seed=seed):
        pixels = images.permute(0, 2, 3, 1).numpy()[:, ring].astype(np.float64)
        found.append(np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1))
    return np.concatenate(found)


def _accuracy(borders: Sequence[npt.NDArray[np.float64]], seed: int) -> float:
    """Accuracy of telling the data sets apart, with as many images of each."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import StratifiedKFold, cross_val_score

    fewest, generator = min(map(len, borders)), np.random.default_rng(seed)
    features = np.concatenate([generator.permutation(one)[:fewest] for one in borders])
    labels = np.repeat(np.arange(len(borders)), fewest)
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    return float(cross_val_score(RandomForestClassifier(200, random_state=seed), features, labels, cv=folds).mean())


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Accuracy of each policy, mean and ends over seeds."""
    result = results["border"]
    rows = [
        [name, f"{np.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"]
        for name, values in result["accuracy"].items()
    ]
    said = (
        f"{' against '.join(result['domains'])}, {result['seeds']} seeds; chance is {1 / len(result['domains']):.2f}."
    )
    return {"border": table("policy | accuracy", rows, f"{said} `{result['command']}`.")}


if __name__ == "__main__":
    typer.run(main)
