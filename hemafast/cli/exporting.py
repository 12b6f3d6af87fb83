"""Out of the house: export, explain."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import Json, Quiet, Verbose, app, console_of, wide_console
from hemafast.cli.live import LiveProgress
from hemafast.deploy.choices import Format, Layout, Method


@app.command(
    epilog="Examples: `hemafast export runs/NAME`, `hemafast export runs/NAME --format torch-export --layout nchw`"
)
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or the .safetensors file of a model.")],
    format: Annotated[
        Format, typer.Option(help="A graph for ONNX or torch.export, or the weights as timm names them.")
    ] = "onnx",
    layout: Annotated[
        Layout, typer.Option(help="Of the images that a graph takes: channels last, as decoders give them, or first.")
    ] = "nhwc",
    output: Annotated[Path | None, typer.Option(help="Folder to write into.", show_default="RUN/export")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's best model for programs without hemafast, with a model card beside it.

    Graphs take uint8 images in batches of any size: normalisation is inside. The exported model is run on noise and, if
    the run's data set is there, on cells; if it answers otherwise than the model, nothing is written.
    """
    from hemafast.deploy.export import export_run

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    with console.status("exporting"):
        exported = export_run(run, output, format=format, layout=layout)
    if as_json:
        typer.echo(json.dumps(exported.to_plain(), indent=2))
    else:
        wide_console().print(exported.told(), highlight=False, markup=False, soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast explain runs/NAME cell.jpg`, `hemafast explain runs/NAME cells/ --class monocyte`"
)
def explain(
    run: Annotated[Path, typer.Argument(help="Run folder, or the .safetensors file of a model.")],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE", help="Files, folders, zips, or quoted globs.")],
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures.", show_default="RUN/explain")] = None,
    label: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class to explain.", show_default="the predicted one"),
    ] = None,
    method: Annotated[Method, typer.Option(help="How the heat map is made.")] = "gradcam",
    um_per_pixel: Annotated[
        float | None,
        typer.Option(help="Scale of the images.", show_default="that of the domain they lie in"),
    ] = None,
    device: Annotated[config.Device, typer.Option(help="Where the model runs.")] = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw what the network sees of each image, and over it where it found its class: one PNG an image.

    Heat is as coarse as the network's last features, mostly one place for 32 by 32 pixels. It is scaled within each
    image: it says where, not how much. Exit code 1 if an image could not be read.
    """
    from hemafast.deploy.explain import explain as explain_images

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    explained = explain_images(
        run,
        images,
        output,
        label=label,
        method=method,
        um_per_pixel=um_per_pixel,
        device=device,
        progress=LiveProgress(console),
    )
    if as_json:
        typer.echo(json.dumps([asdict(image) for image in explained], indent=2, default=str))
    else:
        results = wide_console()
        for image in explained:
            results.print(image.told(), highlight=False, markup=False, soft_wrap=True)
    if any(image.error for image in explained):
        raise typer.Exit(1)
