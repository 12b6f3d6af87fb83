"""What a trained model is for: predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import Json, Quiet, Verbose, app, console_of, wide_console
from hemafast.cli.live import LiveProgress
from hemafast.errors import StoppedError


@app.command(
    epilog="Examples: `hemafast predict runs/NAME cells/ --output out.csv`, "
    "`hemafast predict runs/NAME more.zip 'cells/**/*.png' --tta`, `hemafast predict cells/ --runs runs/A runs/B`"
)
def predict(
    named: Annotated[
        list[str], typer.Argument(metavar="RUN PATH...", help="Run folder, then images: files, folders, zips, globs.")
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Further run folders: probabilities are the mean over all.", metavar="RUN..."),
    ] = None,
    output: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    submission: Annotated[
        bool, typer.Option("--submission", help="Write the challenge's submission instead: Image, Label, LabelID.")
    ] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Mean over the eight flips and quarter turns.")] = False,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="Name no class below the confidence chosen on validation images.")
    ] = False,
    abstain_below: Annotated[float | None, typer.Option(help="Name no class below this confidence, as 0.7.")] = None,
    um_per_pixel: Annotated[
        float | None,
        typer.Option(
            help="Scale of all images.",
            show_default="that of the domain a folder or zip is named after",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 64,
    device: Annotated[config.Device, typer.Option(help="Where models run.")] = "auto",
    amp: Annotated[config.Amp, typer.Option(help="Autocast precision; auto: fp32 on a CPU.")] = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Classify images with a run's best model: one row an image, with the probability of each class.

    An image that cannot be read is a row with its error, and the exit code is 1. Several runs are one ensemble. Images
    are verified, decoded and cut as for training; probabilities are calibrated if the run was evaluated.
    """
    from hemafast.deploy.plan import Options
    from hemafast.deploy.predict import predict_to

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    options = Options(
        um_per_pixel=um_per_pixel,
        tta=tta,
        abstain=abstain,
        abstain_below=abstain_below,
        batch_size=batch_size,
        device=device,
        amp=amp,
    )
    try:
        done = predict_to(output, named, runs or (), options, submission=submission, progress=LiveProgress(console))
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped; nothing was written.", "Run the same command again.") from error
    summary = {"output": str(output), **done.summary()}
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
    else:
        for line in (*done.lines(), str(output)):
            wide_console().print(line, highlight=False, markup=False, soft_wrap=True)
    if done.failed:
        raise typer.Exit(1)
