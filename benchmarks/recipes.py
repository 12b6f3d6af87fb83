"""The table of recipes: what a command took and scored where it was measured, gathered from the other results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from output import machine_line, table

_HOME = "Acevedo_20"


def tables(results: Mapping[str, Any]) -> dict[str, str]:
    """One row per command, from the least to the most time."""
    found = sorted(
        [*_quick(results), *_budgets(results), *_elsewhere(results), *_best(results)], key=lambda one: one[0]
    )
    header = "command | seconds | validation images | macro-F1 | in three laboratories never seen | machine"
    machines = dict.fromkeys(machine_line(machine) for _, _, machine in found)
    letters = {line: chr(ord("A") + place) for place, line in enumerate(machines)}
    rows = [[*cells, letters[machine_line(machine)]] for _, cells, machine in found]
    note = " ".join(f"{letter}: {line}" for line, letter in letters.items())
    return {"recipes": table(header, rows, f"Seconds of the training with its validation. {note}")}


Row = tuple[float, list[str], Mapping[str, str]]


def _quick(results: Mapping[str, Any]) -> Iterator[Row]:
    result = results["quick"]
    scores, seconds = result["metrics"]["domains"][_HOME], result["metrics"]["training"]["total_seconds"]
    low, high = scores["ci95"]["macro_f1"]
    score = f"{scores['macro_f1']:.3f} ({low:.3f} to {high:.3f})"
    yield seconds, _cells(result["command"], f"{seconds:.0f}", scores["images"], score), result["machine"]


def _budgets(results: Mapping[str, Any]) -> Iterator[Row]:
    result = results["on_time"]
    for run in result["runs"]:
        command = f"hemafast train --preset {run['preset']} --time-budget {run['budget']}s"
        cells = [f"`{command}`", f"{run['seconds']:.0f}", f"{result['images']['val']} of two archives"]
        yield run["seconds"], [*cells, f"{run['f1_macro']:.3f}", ""], result["machine"]


def _elsewhere(results: Mapping[str, Any]) -> Iterator[Row]:
    result = results["another_lab"]
    for preset, found in result["presets"].items():
        if " " not in preset:  # else a preset with options
            seconds = sorted(run["seconds"] for run in found["runs"])
            home, unseen = (_mean(found["means"][name]) for name in (_HOME, "unseen"))
            images = found["runs"][0]["scores"][_HOME]["images"]
            cells = _cells(f"hemafast train --preset {preset}", f"{seconds[0]:.0f} to {seconds[-1]:.0f}", images, home)
            yield seconds[0], [*cells[:-1], unseen], result["machine"]


def _best(results: Mapping[str, Any]) -> Iterator[Row]:
    result = results["equal_time"]
    seconds, found = result["seconds"][_HOME], result["domains"][_HOME]
    command = f"{result['ours']} --time-budget {seconds:.0f}s"
    score = found["macro_f1"]["hemafast"]
    low, high = score["ci95"]
    text = f"{score['mean']:.3f} ({low:.3f} to {high:.3f})"
    yield seconds, _cells(command, f"{seconds:.0f}", found["images"], text), result["machine"]


def _cells(command: str, seconds: str, images: int, score: str) -> list[str]:
    return [f"`{command}`", seconds, f"{images} of {_HOME}", score, ""]


def _mean(found: Mapping[str, float]) -> str:
    return f"{found['mean']:.3f} (three seeds: {found['min']:.3f} to {found['max']:.3f})"
