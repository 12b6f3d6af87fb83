"""Pictures of what a change brings: gains in macro-F1 with their 95 % intervals, from results that are there already.

    python benchmarks/gains.py

Writes lineage_loss.png, lineage_policy.png and ensembles.png beside the results of `lineage.py` and `ensembles.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from output import Results

RESULTS = Path(__file__).parent / "results"


class Gain(NamedTuple):
    """A difference in macro-F1, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


Panels = dict[str, dict[str, Gain]]
"""By title of a panel and name of a side."""


def pictures(results: Mapping[str, Any]) -> Iterator[tuple[str, Panels]]:
    """Each picture by its name."""
    for question, scores in results["lineage"]["scores"].items():
        first = next(iter(scores))
        gains = {side: found["macro_f1"]["gain"] for side, found in scores.items() if "gain" in found["macro_f1"]}
        panel = {side: Gain(gain["mean"], *gain["ci95"]) for side, gain in gains.items()}
        yield f"lineage_{question}", {f"gain in macro-F1 over {first}": panel}
    yield "ensembles", _of_ensembles(results["ensembles"])


def _of_ensembles(result: Mapping[str, Any]) -> Panels:
    rates = result["images_per_cpu_second"]
    named = {side: f"{side}, {rates.get(side, rates['one seed']):.0f} images/s" for side in result["sides"]}
    return {
        f"{lab}: gain in macro-F1 over one seed": {
            named[side]: Gain(difference["macro_f1"], *difference["ci95"])
            for side, found in result["sides"].items()
            if lab in found["scores"]  # no image at home is held out for all folds
            for difference in [found["scores"][lab]["difference"]]
        }
        for lab in result["data"]
    }


def draw(panels: Panels, file: Path) -> None:
    """One panel below the other, a row for each side, on one scale."""
    from hemafast.pictures import TRAIN_COLOUR, save, subplots

    most = max(len(panel) for panel in panels.values())
    ends = [end for panel in panels.values() for gain in panel.values() for end in (gain.low, gain.high)]
    least, largest = min(0, *ends), max(0, *ends)
    margin = 0.05 * (largest - least)
    figure, axes = subplots(len(panels), width=7, height=0.75 + 0.28 * most, columns=1)
    for axis, (title, panel) in zip(axes, panels.items(), strict=True):
        places = range(len(panel))
        means, lows, highs = zip(*panel.values(), strict=True)
        errors = [[max(a - b, 0) for a, b in zip(*pair, strict=True)] for pair in ((means, lows), (highs, means))]
        axis.errorbar(means, places, xerr=errors, fmt="o", ms=5, capsize=3, color=TRAIN_COLOUR)
        axis.axvline(0, color="0.5", linewidth=1)
        axis.set_yticks(places, panel)
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.set_title(title, fontsize=10, loc="left")
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(least - margin, largest + margin)
    save(figure, file)


def main(folder: Annotated[Path, typer.Option(help="Folder of the results.")] = RESULTS) -> None:
    """Draw all of them."""
    for name, panels in pictures(Results(folder)):
        draw(panels, folder / f"{name}.png")
        typer.echo(str(folder / f"{name}.png"))


if __name__ == "__main__":
    typer.run(main)
