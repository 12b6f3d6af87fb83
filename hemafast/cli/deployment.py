"""What a trained model is for: predict, embed, export, push, explain."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from glob import has_magic
from pathlib import Path
from typing import Annotated

import typer

from hemafast.cli.common import Amp, Json, Quiet, Verbose, app, listen, refuse_missing_paths, wide_console
from hemafast.cli.new_images import Taken, takes_images, whole_or_nothing
from hemafast.cli.options import Asked, configured
from hemafast.collector import resting
from hemafast.config import PrepareConfig
from hemafast.deploy.choices import MODELS, Engine, Format, Layout, Method
from hemafast.run_folder import LATEST, find_run

Model = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, latest, or the file of a model.")]
Images = Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders, zips, or quoted globs.")]


@app.command(
    epilog="Examples: `hemafast predict runs/NAME cells/ --output out.csv`, "
    "`hemafast predict latest more.zip 'cells/**/*.png' --tta`, `hemafast predict cells/ --runs runs/A runs/B`"
)
@takes_images
def predict(
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN PATH...", help="Run folder or latest, then images: files, folders, zips, quoted globs."
        ),
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Option(help="Further runs of an ensemble: probabilities are averaged.", metavar="RUN..."),
    ] = None,
    output: Annotated[Path, typer.Option(help="Table to write: .csv, .tsv, .xlsx or .parquet.")] = Path(
        "predictions.csv"
    ),
    submission: Annotated[
        bool, typer.Option("--submission", help="Write the challenge's submission instead: Image, Label, LabelID.")
    ] = False,
    tta: Annotated[bool, typer.Option("--tta", help="Average over the eight flips and quarter turns.")] = False,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="Name no class below the confidence chosen on the validation set.")
    ] = False,
    abstain_below: Annotated[float | None, typer.Option(help="Name no class below this confidence, as 0.7.")] = None,
    sets: Annotated[
        bool,
        typer.Option("--sets", help="Add the classes that may be the true one, as a column set."),
    ] = False,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 64,
    amp: Amp = "auto",
    engine: Annotated[
        Engine, typer.Option(help="What computes on a CPU; auto takes the faster of torch and the run's int8 export.")
    ] = "auto",
    *,
    taken: Taken,
) -> None:
    """Classify images with a run's best model: one row per image, with the probability of each class.

    An unreadable image is a row with its error, and the exit code is 1. Several runs form an ensemble. Images are
    verified, decoded and cropped as for training; probabilities are calibrated if the run was evaluated.
    """
    named = _existing(named, runs or ())
    with resting():
        from hemafast.deploy.plan import Options
        from hemafast.deploy.predict import predict_to

    options = Options(
        um_per_pixel=taken.um_per_pixel,
        bit_depth=taken.bit_depth,
        tta=tta,
        abstain=abstain,
        abstain_below=abstain_below,
        sets=sets,
        batch_size=batch_size,
        device=taken.device,
        amp=amp,
        engine=engine,
    )
    with whole_or_nothing():
        done = predict_to(output, named, runs or (), options, submission=submission, progress=taken.progress)
    taken.tell({"output": str(output), **done.summary()}, [*done.lines(), str(output)])
    if done.failed:
        raise typer.Exit(1)


def _existing(named: Sequence[str], runs: Sequence[Path]) -> list[str]:
    """What the user names, with the folder of the latest run. Raises HemafastError if it does not exist."""
    if not runs and not has_magic(named[0]) and Path(named[0]).suffix not in MODELS:
        find_run(named[0])  # the run comes first
    found = [str(find_run(name)) if name == LATEST else name for name in named]
    refuse_missing_paths([*found, *map(str, runs)])
    return found


@app.command(
    epilog="Examples: `hemafast embed latest cells/`, `hemafast embed latest cells/ --labels own --map map.html`, "
    "`hemafast embed runs/NAME more.zip --labels labels.csv --output features.npz`"
)
@configured(PrepareConfig, fields=("class_map", "columns", "groups"))
@takes_images
def embed(
    asked: Asked,
    run: Model,
    images: Images,
    output: Annotated[Path, typer.Option(help="Table of features to write: .parquet or .npz.")] = Path(
        "embeddings.parquet"
    ),
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|own",
            help="Labels: a table of path and label; or own, for class folders. They are compared with the features.",
            show_default="none",
        ),
    ] = None,
    map: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page with a map of the cells by UMAP.", show_default="none"),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 64,
    *,
    taken: Taken,
) -> None:
    """Write the features that a run's best model sees in images, one row per image, with its answers beside them.

    With labels, nearest neighbours and a linear probe say how well the features tell the classes, by cross-validation
    with patients apart. The map shows the cell under the pointer, and saves a region as a table.
    """
    folder = find_run(run)
    refuse_missing_paths(images)
    from hemafast.deploy.plan import Options
    from hemafast.report.embedding import Named, embed_to

    named = Named(labels=labels, **asked)
    options = Options(
        um_per_pixel=taken.um_per_pixel, bit_depth=taken.bit_depth, batch_size=batch_size, device=taken.device
    )
    with whole_or_nothing():
        done = embed_to(output, folder, images, named, options, page=map, progress=taken.progress)
    taken.tell(done.to_plain(), done.lines())
    if done.unreadable:
        raise typer.Exit(1)


@app.command(
    epilog="Examples: `hemafast export runs/NAME`, `hemafast export latest --format torch-export --layout nchw`"
)
def export(
    run: Model,
    format: Annotated[
        Format,
        typer.Option(help="A graph for ONNX (int8 is faster) or torch.export, or the weights under timm's names."),
    ] = "onnx",
    layout: Annotated[
        Layout, typer.Option(help="Layout of a graph's images: channels last, as decoders give them, or first.")
    ] = "nhwc",
    output: Annotated[Path | None, typer.Option(help="Folder to write into.", show_default="RUN/export")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's best model for programs without hemafast, with a model card beside it.

    Graphs take uint8 images in batches of any size and normalise them. The export is checked against the model on noise
    and, if the run's data set is there, on cells. If the two differ, nothing is written.
    """
    folder = find_run(run)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    with resting():
        from hemafast.deploy.export import export_run
        from hemafast.progress import stage

    with stage(progress, "exporting"):
        exported = export_run(folder, output, format=format, layout=layout)
    if as_json:
        typer.echo(json.dumps(exported.to_plain(), indent=2))
    else:
        wide_console().print(exported.told(), soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast push runs/NAME --license cc-by-4.0`, "
    "`hemafast push latest --output FOLDER --to OWNER/NAME`"
)
def push(
    run: Model,
    output: Annotated[Path | None, typer.Option(help="Folder to write into.", show_default="RUN/push")] = None,
    licence: Annotated[
        str,
        typer.Option(
            "--license",
            metavar="ID",
            help="Licence of the weights, such as cc-by-nc-4.0.",
            show_default="not stated",
        ),
    ] = "other",
    to: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload to this repository of the hub; a new one is private."),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write a run's best model as model hubs expect it, to a folder and, if asked, to a hub.

    Model card, weights that timm loads alone, an ONNX graph with a short program that runs it, preprocessing, licence.
    """
    folder = find_run(run)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.deploy.push import push_run
    from hemafast.progress import stage

    with stage(progress, "exporting"):
        pushed = push_run(folder, output, licence=licence, to=to)
    if as_json:
        plain = asdict(pushed)
        typer.echo(json.dumps(plain | {"folder": str(pushed.folder)}, indent=2))
    else:
        wide_console().print(pushed.told(), soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast explain runs/NAME cell.jpg`, `hemafast explain latest cells/ --class monocyte`"
)
@takes_images
def explain(
    run: Model,
    images: Images,
    output: Annotated[Path | None, typer.Option(help="Folder for the pictures.", show_default="RUN/explain")] = None,
    label: Annotated[
        str | None,
        typer.Option("--class", metavar="NAME", help="Class to explain.", show_default="the predicted one"),
    ] = None,
    method: Annotated[Method, typer.Option(help="Method of the heat map.")] = "gradcam",
    *,
    taken: Taken,
) -> None:
    """Draw what the network sees of each image, with a heat map of where it finds the class: one PNG per image.

    The heat map is as coarse as the network's last features, mostly one value for 32 by 32 pixels, and is scaled within
    each image: it shows where, not how much. Exit code 1 if an image cannot be read.
    """
    folder = find_run(run)
    refuse_missing_paths(images)
    with resting():
        from hemafast.deploy.explain import explain as explain_images

    explained = explain_images(
        folder,
        images,
        output,
        label=label,
        method=method,
        um_per_pixel=taken.um_per_pixel,
        bit_depth=taken.bit_depth,
        device=taken.device,
        progress=taken.progress,
    )
    taken.tell([asdict(image) for image in explained], [image.told() for image in explained])
    if any(image.error for image in explained):
        raise typer.Exit(1)
