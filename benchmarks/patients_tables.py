"""The tables of patients.json. They need neither torch nor the script that measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from output import machine_line, table


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """Errors of differentials by the number of cells, and what an attention head finds with a rule and without."""
    result = results["patients"]
    drawn = f"{result['cells']:,} validation images, {result['draws']} compositions, mean (lowest to highest)"
    where = f"`{result['command']}`: {drawn}."
    machine = machine_line(result["machine"])
    run = f"{result['run']['model']}, macro-F1 {result['run']['macro_f1']:.3f} on its validation images."
    labels = result["labels"]
    counted = f"{result['differentials']['as at home']['25'][0]['patients']} patients in each composition."
    dealt = f"{labels['patients']} patients of {labels['cells']} cells, half of them ill."
    return {
        "differentials": table(
            "mix of cells | cells of a patient | counted: in the wrong class | intervals that hold the label "
            "| adjusted: in the wrong class | intervals that hold the label",
            [
                _differential(mix, size, found)
                for mix, of_size in result["differentials"].items()
                for size, found in of_size.items()
            ],
            f"{counted} {run} {where} {machine}",
        ),
        "labels_of_patients": table(
            "rule | AUROC, attention | mean of the cells | differential alone "
            "| p of the permutation test | verdict: better than chance",
            [
                _labels(f"ill patients have more of {labels['rich']}", labels["planted"]),
                _labels("none", labels["none"]),
            ],
            f"{dealt} {run} {where} {machine}",
        ),
    }


def _differential(mix: str, size: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    percent = [_ranged([one[name] for one in found], "%") for name in ("distance", "adjusted")]
    inside = [_ranged([100 * one[name] for one in found], "%", 0) for name in ("inside", "adjusted_inside")]
    return [mix, size, percent[0], inside[0], percent[1], inside[1]]


def _labels(rule: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    areas = [_ranged([one[name] for one in found], "", 2) for name in ("auroc", "means", "differential")]
    p = _ranged([one["p"] for one in found], "", 2)
    return [rule, *areas, p, f"{sum(one['told'] for one in found)} of {len(found)}"]


def _ranged(values: Sequence[float], unit: str, digits: int = 1) -> str:
    least, middle, most = (f"{value:.{digits}f}{unit}" for value in (min(values), mean(values), max(values)))
    return f"{middle} ({least} to {most})"
