"""What a run is worth: evaluate, report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import Json, Quiet, Verbose, app, console_of, print_evaluation, wide_console


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

    Half of the images calibrate: temperature and thresholds are fitted on them, kept with the model, and reported on
    the others. Writes metrics.json, predictions.csv, confusion_matrix.png and report.html into the run folder.
    """
    console_of(verbose=verbose, quiet=quiet or as_json)
    print_evaluation(run, data, device, as_json=as_json)


@app.command(
    epilog="Examples: `hemafast report runs/NAME`, `hemafast report runs/A runs/B --output runs/compared.html`, "
    "`hemafast report runs/NAME --explain`"
)
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are shown side by side.")],
    output: Annotated[
        Path | None, typer.Option(help="Page to write; needed for several runs.", show_default="report.html in the run")
    ] = None,
    thumbnails: Annotated[int, typer.Option(min=0, max=5000, help="Most cells to show as pictures.")] = 600,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where the surest mistakes were read from, by Grad-CAM.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one page about runs that were evaluated: scores, confusion, mistakes, calibration, curves, settings.

    It needs no other file and no network. Several runs are compared on the same images, with paired intervals.
    """
    from hemafast.report.page import write_report

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    with console.status("writing the page"):
        page = write_report(runs, output, thumbnails=thumbnails, explain=explain)
    if as_json:
        typer.echo(json.dumps({"report": str(page), "bytes": page.stat().st_size}))
    else:
        wide_console().print(str(page), highlight=False, soft_wrap=True)
