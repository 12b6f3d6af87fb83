"""What a run is worth: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import Json, Quiet, Verbose, app, console_of, print_evaluation


@app.command(epilog="Example: `hemafast evaluate runs/NAME`")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Run folder.")],
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set to score on.", show_default="the run's own")
    ] = None,
    device: Annotated[config.Device, typer.Option(help="Where the model runs.")] = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a run's best model on the validation images, by domain and pooled.

    Writes metrics.json, confusion_matrix.png and report.html into the run folder.
    """
    console_of(verbose=verbose, quiet=quiet or as_json)
    print_evaluation(run, data, device, as_json=as_json)
