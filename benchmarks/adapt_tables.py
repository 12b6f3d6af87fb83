"""Tables of adapt.json: what `hemafast adapt` gains. They need neither torch nor the script that measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from output import machine_line, table

PER_CLASS = (1, 5, 10, 50)
"""Labels of each class."""
SUGGESTED = 50
"""Labels that are suggested, or drawn at random."""

Measured = Mapping[str, Any]


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Changes without labels by laboratory, curves with few labels, and what a suggestion gains, as means over runs."""
    result = results["adapt"]
    by_name, of_runs = _by_name(result), _of_runs(result)
    of_draws = f"Mean of {of_runs} and {result['draws']} draws of labels each."
    return {
        "adapt_changes": _changes_table(result),
        "adapt_classes": _changes_table(results["adapt_classes"]),
        "adapt_labels": table(
            " | ".join(["labels", *by_name, "mean"]),
            [[f"{count} a class", *_across(by_name, place)] for place, count in enumerate(PER_CLASS)],
            of_draws + _seconds(by_name),
        ),
        "adapt_suggested": table(
            " | ".join([f"{SUGGESTED} labels", *by_name, "mean"]),
            [
                [which, *_means([[one["suggested"][which]["mean"] for one in runs] for runs in by_name.values()])]
                for which in ("suggested", "random")
            ],
            of_draws,
        ),
    }


def _by_name(result: Measured) -> dict[str, list[Measured]]:
    """What each run measured, by laboratory."""
    return {
        one["name"]: [run["laboratories"][place] for run in result["runs"]]
        for place, one in enumerate(result["runs"][0]["laboratories"])
    }


def _of_runs(result: Measured) -> str:
    return f"{len(result['runs'])} seeds of `{result['runs'][0]['preset']}`"


def _changes_table(result: Measured) -> str:
    by_name, measured_by = _by_name(result), f"`{result['command']}`, {machine_line(result['machine'])}"
    note = f"Macro-F1, mean of {_of_runs(result)} (least to most). {measured_by}"
    return table(" | ".join(["without labels", *by_name, "mean"]), [*_changes(by_name)], note)


def _changes(by_name: Mapping[str, Sequence[Measured]]) -> Iterable[list[str]]:
    """A row for each change: the score of each laboratory over the runs."""
    first = next(iter(by_name.values()))[0]["changes"]
    for place, change in enumerate(first):
        scores = [[one["changes"][place]["macro_f1"] for one in runs] for runs in by_name.values()]
        spread = [f"{mean(some):.3f} ({min(some):.3f} to {max(some):.3f})" for some in scores]
        yield [change["change"], *spread, f"{mean(map(mean, scores)):.3f}"]


def _across(by_name: Mapping[str, Sequence[Measured]], place: int) -> list[str]:
    return _means([[one["labels"][place]["with"]["mean"] for one in runs] for runs in by_name.values()])


def _means(scores: Sequence[Sequence[float]]) -> list[str]:
    """The mean of each laboratory, and of all of them."""
    means = [mean(some) for some in scores]
    return [f"{one:.3f}" for one in (*means, mean(means))]


def _seconds(by_name: Mapping[str, Sequence[Measured]]) -> str:
    """How long adapting takes, in the laboratory where it takes longest."""
    first = [runs[0] for runs in by_name.values()]
    most = {way: max(one["seconds"][way] for one in first) for way in ("without", "with")}
    return (
        f" `hemafast adapt` as a whole took at most {most['without']:.0f} seconds without labels, and "
        f"{most['with']:.0f} with {PER_CLASS[-1]} a class ({max(one['cells'] for one in first):,} images)."
    )
