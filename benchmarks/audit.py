"""How many wrong labels `hemafast audit` finds: labels are changed on purpose, and the ranking is asked for them.

    python benchmarks/audit.py Source/prepared --json benchmarks/results/audit.json

2 % of the labels become another class at random, and another 2 % the likeliest wrong class, as models say that were
fitted on the labels as they are. A ranking is good if these are among its first 4 %. The images are looked at once;
each repeat changes other labels and judges them all anew. Labels that were wrong before count as right here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from output import JsonFileOrNone, machine_line, print_json, table

from hemafast.bench.result import spread
from hemafast.data.dataset import open_dataset
from hemafast.engine.machine import machine_facts
from hemafast.evaluate.metrics import Labels
from hemafast.evaluate.suspects import label_quality, likeliest_other
from hemafast.logistic import Matrix

CHANGED = 0.02
"""Share of the labels that each way of changing them changes."""
LISTED = 2 * CHANGED
"""Share of the labels that is looked at."""
RANDOM, LIKELIEST = "to a class at random", "to the likeliest wrong class"

Quality = Callable[[Labels, Matrix], npt.NDArray[np.float64]]


def beside(share: float) -> Quality:
    """The score of the label less `share` of that of the likeliest other class."""

    def quality(labels: Labels, scores: Matrix) -> npt.NDArray[np.float64]:
        rows = np.arange(len(labels))
        return np.asarray(scores[rows, labels] - share * scores[rows, likeliest_other(labels, scores)])

    return quality


RANKINGS: dict[str, Quality] = {
    "margin, less half of what is usual for the class (hemafast audit)": label_quality,
    "margin: score of the label less that of the likeliest other class": beside(1),
    "score of the label alone": beside(0),
    "less twice that of the likeliest other class": beside(2),
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


def found_by(quality: npt.NDArray[np.float64], places: npt.NDArray[np.int64]) -> float:
    """Share of the `places` among the LISTED of the images with the least quality."""
    first = np.argsort(quality, kind="stable")[: round(LISTED * len(quality))]
    return float(np.isin(places, first).mean())


def doubted_before(
    quality: npt.NDArray[np.float64], places: Mapping[str, npt.NDArray[np.int64]], doubted: npt.NDArray[np.bool_]
) -> float:
    """Of the listed labels that nobody changed, the share that was `doubted` already, before any was changed."""
    first = np.argsort(quality, kind="stable")[: round(LISTED * len(quality))]
    return float(doubted[np.setdiff1d(first, np.concatenate([*places.values()]))].mean())


def main(
    data: Annotated[Path, typer.Argument(help="Prepared data set of real images.")],
    json_file: JsonFileOrNone = None,
    domain: Annotated[str | None, typer.Option(help="Of this domain only.", show_default="all")] = "Acevedo_20",
    repeats: Annotated[int, typer.Option(min=1, help="How often labels are changed.")] = 40,
) -> None:
    """Change labels and rank them; a few minutes on two cores."""
    from hemafast.evaluate.left_out import LeftOut
    from hemafast.experiments.audit import features_of
    from hemafast.preparation.split import ALL

    dataset = open_dataset(data, domains=None if domain is None else (domain,))
    samples, groups = dataset.samples(ALL), dataset.split(ALL)["group"].tolist()
    features, judged_by = features_of(dataset, samples, None, "cpu")
    labels, classes = samples.labels, len(dataset.classes)
    judge = LeftOut.of(features, groups)
    clean = judge(labels, classes)
    found: dict[str, dict[str, list[float]]] = {name: {RANDOM: [], LIKELIEST: []} for name in RANKINGS}
    others: list[float] = []
    for repeat in range(repeats):
        wrong, places = changed(labels, likeliest_other(labels, clean), np.random.default_rng(repeat))
        scores = judge(wrong, classes)
        for name, ranking in RANKINGS.items():
            quality = ranking(wrong, scores)
            for way, rows in places.items():
                found[name][way].append(found_by(quality, rows))
        others.append(doubted_before(label_quality(wrong, scores), places, clean.argmax(axis=1) != labels))
    result: dict[str, Any] = {
        "command": f"python benchmarks/audit.py DATA --domain {domain} --repeats {repeats}",
        "machine": machine_facts("cpu"),
        "judged_by": judged_by,
        "images": len(labels),
        "accuracy": float((clean.argmax(axis=1) == labels).mean()),
        "likeliest_is_answer": float((likeliest_other(labels, clean) == clean.argmax(axis=1)).mean()),
        "others_doubted_before": spread(others),
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
    doubted = result["others_doubted_before"]["median"]
    note = (
        f"Share of the changed labels among the first {LISTED:.0%} of {result['images']:,}, median of the repeats "
        f"(least to most). Judged by {result['judged_by']}. The regression agrees with {result['accuracy']:.1%} of the "
        f"labels as they are; changed to the likeliest wrong class, {result['likeliest_is_answer']:.1%} would have its "
        f"answer as their label, and it cannot find them. Of the listed labels that nobody changed, it doubts "
        f"{doubted:.0%} as they are. `{result['command']}`. {machine_line(result['machine'])}"
    )
    return {"audit": table(f"ranking | {RANDOM} | {LIKELIEST}", rows, note)}


if __name__ == "__main__":
    typer.run(main)
