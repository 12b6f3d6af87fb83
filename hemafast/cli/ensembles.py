"""Several runs as one model: ensemble."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from hemafast.cli.common import Device, Json, Quiet, Verbose, app, listen, wide_console
from hemafast.cli.new_images import whole_or_nothing
from hemafast.config import TrainConfig
from hemafast.deploy.choices import Combining
from hemafast.errors import HemafastError
from hemafast.run_folder import find_run

_TIMES = re.compile(r"(\d+(?:\.\d+)?)x?")


@app.command(
    epilog="Examples: `hemafast ensemble runs/A runs/B runs/C`, `hemafast ensemble runs/A runs/B --method fitted`, "
    "`hemafast ensemble runs/* --max-cost 2x`, `hemafast ensemble runs/NAME --method snapshots`"
)
def ensemble(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or latest.")],
    method: Annotated[
        Combining,
        typer.Option(
            help="mean of probabilities; fitted: weights from validation images; soup: mean of the weights of one "
            "recipe's seeds; snapshots: the checkpoints of one run (train with --keep 5)."
        ),
    ] = "mean",
    max_cost: Annotated[
        str | None,
        typer.Option(
            metavar="TIMES",
            help="Choose the best members that cost at most this many times the best run, as 2x.",
            show_default="all members",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder in which the run folder is made.")] = TrainConfig.output,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Make one model of several runs, and score it. It is a run folder: predict, evaluate, explain and export take it.

    Runs must share their data and their classes. Order of classes, image size and normalisation may differ. Runs of
    several folds of the same data have no validation images in common: score these with --split test or --data.
    """
    folders = [find_run(run) for run in runs]
    most = _times(max_cost)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.deploy.combine import combine_runs

    with whole_or_nothing():
        made = combine_runs(folders, method=method, max_cost=most, output=output, device=device, progress=progress)
    if as_json:
        typer.echo(json.dumps({"run": str(made.folder), **made.result}, indent=2))
    else:
        wide_console().print("\n".join(made.lines()), soft_wrap=True)
    if made.scored:
        from hemafast.cli.evaluation import evaluated, print_evaluation

        if as_json:
            evaluated(made.folder, None, "val", device, progress=progress)
        else:
            print_evaluation(made.folder, None, "val", device, as_json=False, progress=progress)


def _times(text: str | None) -> float | None:
    if text is None:
        return None
    found = _TIMES.fullmatch(text.strip())
    if found is None or float(found[1]) < 1:
        raise HemafastError(f"--max-cost {text!r} is not 1 or more times a cost.", "Write it as 2x.")
    return float(found[1])
