"""How many wrong labels `hemafast audit` finds: labels are changed on purpose, and the ranking is asked for them.

    python benchmarks/audit.py Source/prepared --json benchmarks/results/audit.json

2 % of the labels become another class at random, and another 2 % the likeliest wrong class, as models say that were
fitted on the labels as they are. A ranking is good if these are among its first 4 %. The images are looked at once;
each repeat changes other labels and judges them all anew. Labels that were wrong before count as right here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFileOrNone, machine_line, print_json, table

from hemafast.bench.result import spread
from hemafast.data.dataset import open_dataset
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.metrics import Labels, Probabilities
from hemafast.evaluate.suspects import label_quality

CHANGED = 0.02
"""Share of the labels that each way of changing them changes."""
LISTED = 2 * CHANGED
"""Share of the labels that is looked at."""
RANDOM, LIKELIEST = "to a class at random", "to the likeliest wrong class"

Quality = Callable[[Labels, Probabilities], npt.NDArray[np.float64]]


def margin(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """The probability of the label minus that of the likeliest other class: `normalized_margin` of cleanlab."""
    rows = np.arange(len(labels))
    return np.asarray(probabilities[rows, labels] - probabilities[rows, likeliest_wrong(labels, probabilities)])


def share(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.float64]:
    """The probability of the label as a share of itself and that of the likeliest other class."""
    rows = np.arange(len(labels))
    own, other = probabilities[rows, labels], probabilities[rows, likeliest_wrong(labels, probabilities)]
    return np.asarray(own / np.maximum(own + other, 1e-30))


RANKINGS: dict[str, Quality] = {
    "probability of the label (hemafast audit)": label_quality,
    "its share beside the likeliest other class": share,
    "margin over the likeliest other class": margin,
    "chance": lambda labels, _: np.random.default_rng(1).random(len(labels)),
}


def changed(
    labels: Labels, likeliest: Labels, generator: np.random.Generator
) -> tuple[Labels, dict[str, npt.NDArray[np.int64]]]:
    """Labels of which some are wrong, and the places of these, by the way in which they were changed."""
    count, present = round(CHANGED * len(labels)), np.unique(labels)
    order = generator.permutation(len(labels))
    places = {RANDOM: order[:count], LIKELIEST: order[count : 2 * count]}
    wrong = labels.copy()
    wrong[places[RANDOM]] = [generator.choice(present[present != label]) for label in labels[places[RANDOM]]]
    wrong[places[LIKELIEST]] = likeliest[places[LIKELIEST]]
    return wrong, places


def likeliest_wrong(labels: Labels, probabilities: Probabilities) -> Labels:
    """(images,): the class other than its label that an image most probably has."""
    others = probabilities.astype(np.float64, copy=True)
    others[np.arange(len(labels)), labels] = -1
    return np.asarray(others.argmax(axis=1), dtype=np.int64)


def found_by(quality: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> float:
    """Share of the `places` among the LISTED of the images with the least quality."""
    first = np.argsort(quality, kind="stable")[: round(LISTED * len(quality))]
    return float(np.isin(places, first).mean())


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data set of real images.")],
    json_file: JsonFileOrNone = None,
    domain: Annotated[str | None, typer.Option(help="Of this domain only.", show_default="all")] = "Acevedo_20",
    repeats: Annotated[int, typer.Option(min=1, help="How often labels are changed.")] = 5,
) -> None:
    """Change labels and rank them; a few minutes on two cores."""
    from hemafast.experiments.audit import cross_validated, features_of
    from hemafast.preparation.split import ALL

    dataset = open_dataset(data, domains=None if domain is None else (domain,))
    samples, groups = dataset.samples(ALL), dataset.split(ALL)["group"].tolist()
    features, judged_by = features_of(dataset, samples, None, "cpu")
    labels, classes = samples.labels, len(dataset.classes)
    clean, _ = cross_validated(features, labels, groups, classes)
    found: dict[str, dict[str, list[float]]] = {name: {RANDOM: [], LIKELIEST: []} for name in RANKINGS}
    for repeat in range(repeats):
        wrong, places = changed(labels, likeliest_wrong(labels, clean), np.random.default_rng(repeat))
        probabilities, _ = cross_validated(features, wrong, groups, classes)
        for name, ranking in RANKINGS.items():
            quality = ranking(wrong, probabilities)
            for way, rows in places.items():
                found[name][way].append(found_by(quality, rows))
    result: dict[str, Any] = {
        "command": f"python benchmarks/audit.py DATA --domain {domain} --repeats {repeats}",
        "machine": machine_facts("cpu"),
        "judged_by": judged_by,
        "images": len(labels),
        "accuracy": float((clean.argmax(axis=1) == labels).mean()),
        "found": {name: {way: spread(shares) for way, shares in ways.items()} for name, ways in found.items()},
    }
    print_json(result, json_file)


def tables(results: Any) -> dict[str, str]:
    """Share of the changed labels that each ranking finds."""
    result = results["audit"]
    rows = [
        [name, *(f"{one['median']:.0%} ({one['min']:.0%} to {one['max']:.0%})" for one in ways.values())]
        for name, ways in result["found"].items()
    ]
    note = (
        f"Share of the changed labels among the first {LISTED:.0%} of {result['images']:,}, median of the repeats "
        f"(least to most). Judged by {result['judged_by']}, whose answers agree with {result['accuracy']:.1%} of the "
        f"labels as they are. `{result['command']}`. {machine_line(result['machine'])}"
    )
    return {"audit": table(f"ranking | {RANDOM} | {LIKELIEST}", rows, note)}


if __name__ == "__main__":
    typer.run(main)
