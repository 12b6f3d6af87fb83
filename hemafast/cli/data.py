"""From archives to a data set that one can look at: demo, prepare, verify, eda, augment-preview."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hemafast import config
from hemafast.cli.common import (
    TRAIN_DEFAULTS,
    ConsoleProgress,
    CropArea,
    Data,
    Erase,
    Json,
    Quiet,
    RandAugmentMagnitude,
    RandAugmentOps,
    Rotation,
    Stain,
    Symmetry,
    Verbose,
    Zoom,
    app,
    console_of,
    progress,
    wide_console,
)
from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError, StoppedError

_DEFAULTS = PrepareConfig()


@app.command(epilog="Example: `hemafast demo --source Source`")
def demo(
    source: Annotated[Path, typer.Option(help="Folder to draw into.")] = Path("Source"),
    images: Annotated[int, typer.Option(min=120, help="Cells to draw in all.")] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the drawing.")] = 42,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw two small archives of cells, Acevedo_20.zip and Matek_19.zip, for a first run.

    Does nothing if the folder already holds an archive. The cells are drawn by hemafast, not photographed: no score on
    them says anything about real blood.
    """
    from hemafast.demo.archives import write_demo_archives
    from hemafast.prepare.archive import list_archives

    console = console_of(verbose=verbose, quiet=quiet)
    present = list_archives(source) if source.is_dir() else []
    if present:
        console.print(f"{source} already holds {', '.join(path.name for path in present)}; nothing drawn.")
        return
    with progress(console, "drawing cells") as advance:
        done = iter(range(1, images + 1))
        paths = write_demo_archives(source, images=images, seed=seed, on_image=lambda: advance(next(done), images))
    console.print(f"Drew {images} cells into {' and '.join(str(path) for path in paths)}. They are no photographs.")


@app.command(
    epilog="Examples: `hemafast prepare`, `hemafast prepare --folds 5`, "
    "`hemafast prepare --field-of-view 25 --um-per-pixel MyLab=0.11 --classes from-data`"
)
def prepare(
    source: Annotated[Path, typer.Option(help="Folder of zips or folders, one a domain.")] = _DEFAULTS.source,
    output: Annotated[Path | None, typer.Option(help="Where to write.", show_default="SOURCE/prepared")] = None,
    classes: Annotated[
        config.Classes, typer.Option(help="The 11 classes of the challenge, or the class folders as they are.")
    ] = _DEFAULTS.classes,
    val_fraction: Annotated[float, typer.Option(help="Share that validates.")] = _DEFAULTS.val_fraction,
    folds: Annotated[int | None, typer.Option(help="Write this many folds for cross-validation.")] = None,
    holdout_domain: Annotated[str | None, typer.Option(help="Domain that validates as a whole.")] = None,
    split_file: Annotated[Path | None, typer.Option(help="Published split: CSV of path, split.")] = None,
    groups: Annotated[Path | None, typer.Option(help="Patients or slides to keep whole: CSV of path, group.")] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(metavar="REGEX", help="The same from file names: what the first brackets match names the group."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the split.")] = _DEFAULTS.seed,
    checksums: Annotated[Path | None, typer.Option(help="sha256 sums of archives or images.")] = None,
    field_of_view: Annotated[
        str,
        typer.Option(
            metavar="UM|whole|auto",
            help="Centre square to keep of each image, in micrometres. auto: 25 where the scale is known.",
        ),
    ] = "auto",
    um_per_pixel: Annotated[
        list[str] | None, typer.Option(metavar="NAME=UM", help="Scale of a domain; may be repeated.")
    ] = None,
    pack_size: Annotated[
        list[int] | None,
        typer.Option(help="Side of the packed squares in pixels; may be repeated.", show_default="256"),
    ] = None,
    shards: Annotated[int, typer.Option(help="File lists a split.")] = _DEFAULTS.shards,
    format: Annotated[
        config.Format, typer.Option(help="File lists alone, or WebDataset tars with an index beside them.")
    ] = _DEFAULTS.format,
    strict: Annotated[bool, typer.Option("--strict", help="Quarantine nothing: what would be is an error.")] = False,
    max_quarantined: Annotated[
        float, typer.Option(help="Stop if a larger share would be quarantined.")
    ] = _DEFAULTS.max_quarantined,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Threads.", show_default="the cores")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Turn the archives into a verified data set: manifest, split, file lists, packed pixels.

    Every image is decoded and checked; what cannot be trusted is quarantined with a reason. The result appears whole or
    not at all. Running it again changes nothing unless the archives or the settings have changed; after a kill it goes
    on where it was.
    """
    from hemafast.prepare.build import prepare as prepare_dataset

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    settings = config.checked(
        PrepareConfig,
        {
            "source": source,
            "output": output or source / "prepared",
            "classes": classes,
            "val_fraction": val_fraction,
            "folds": folds,
            "holdout_domain": holdout_domain,
            "split_file": split_file,
            "groups": groups,
            "group_pattern": group_pattern,
            "seed": seed,
            "checksums": checksums,
            "field_of_view": field_of_view,
            "um_per_pixel": dict(_named_number(text) for text in um_per_pixel or []),
            "pack_sizes": tuple(pack_size or _DEFAULTS.pack_sizes),
            "shards": shards,
            "format": format,
            "strict": strict,
            "max_quarantined": max_quarantined,
        },
    )
    try:
        with progress(console, "reading images") as advance:
            prepared = prepare_dataset(settings, advance, workers=workers)
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped. What was verified is kept.", "Run the same command to go on.") from error
    if as_json:
        quarantine = [image.row() for image in prepared.quarantine]
        said = {"folder": str(prepared.folder), "fresh": prepared.fresh, **prepared.info.model_dump(mode="json")}
        typer.echo(json.dumps(said | {"quarantine": quarantine}, indent=2))
        return
    from hemafast.cli.tables import dataset_table, quarantine_table

    results = wide_console()
    results.print(dataset_table(prepared.info))
    if prepared.quarantine:
        results.print(quarantine_table(prepared.quarantine))
    written = "written" if prepared.fresh else "already up to date, nothing changed"
    for line in (*(f"note: {note}" for note in prepared.info.notes), f"{prepared.folder}: {written}."):
        results.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command(epilog="Example: `hemafast verify Source/prepared`")
def verify(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")] = TRAIN_DEFAULTS.data,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Hash a prepared data set again: every image, every packed pixel, every list. Exit code 1 if anything differs."""
    from hemafast.prepare.check import check

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    with progress(console, "hashing images") as advance:
        found = check(data, advance)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        results = wide_console()
        for problem in found.problems:
            results.print(f"{problem.file}: {problem.problem}", highlight=False, markup=False)
        results.print(
            f"{data}: {found.images} images and {found.files} other files hashed, {len(found.problems)} problems.",
            highlight=False,
        )
    if found.problems:
        raise typer.Exit(1)


@app.command(epilog="Example: `hemafast eda --data Source/prepared --output runs/eda`")
def eda(
    data: Data = TRAIN_DEFAULTS.data,
    output: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path("runs/eda"),
    images_per_class: Annotated[int, typer.Option(min=1, max=50, help="Cells to show of each class.")] = 8,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw a prepared data set on one page: classes, sizes, colours, samples, copies, quarantine, split.

    The page needs no other file and no network; its plots lie beside it as PNG for papers.
    """
    from hemafast.eda.page import write_eda

    progress = ConsoleProgress(console_of(verbose=verbose, quiet=quiet or as_json))
    page = write_eda(data, output, images_per_class=images_per_class, progress=progress)
    if as_json:
        typer.echo(json.dumps({"page": str(page), "pictures": sorted(str(path) for path in output.glob("*.png"))}))
    else:
        wide_console().print(str(page), highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast augment-preview`, `hemafast augment-preview --policy lineage --stain 0.2 --draws 4`"
)
def augment_preview(
    data: Data = TRAIN_DEFAULTS.data,
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("runs/augment-preview.png"),
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Policies to show; may be repeated.", show_default="all"),
    ] = None,
    crop_area: CropArea = None,
    zoom: Zoom = None,
    symmetry: Symmetry = None,
    rotation: Rotation = None,
    randaugment_ops: RandAugmentOps = None,
    randaugment_magnitude: RandAugmentMagnitude = None,
    stain: Stain = None,
    erase: Erase = None,
    cells: Annotated[int, typer.Option(min=1, max=50, help="Images to show, of all classes in turn.")] = 8,
    draws: Annotated[int, typer.Option(min=1, max=20, help="Rows of each policy.")] = 2,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the views in pixels.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = TRAIN_DEFAULTS.seed,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw the same cells under each augmentation policy, as training would see them."""
    from hemafast.data.augment import POLICIES, named_policy
    from hemafast.data.preview import write_preview

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    changes: dict[str, Any] = {
        "crop_area": crop_area,
        "zoom": zoom,
        "symmetry": symmetry,
        "rotation": rotation,
        "randaugment_ops": randaugment_ops,
        "randaugment_magnitude": randaugment_magnitude,
        "stain": stain,
        "erase": erase,
    }
    config.train_config(**changes)  # the same checks as for training
    policies = {name: named_policy(name, **changes) for name in policy or POLICIES}
    with console.status("drawing"):
        write_preview(data, output, policies, cells=cells, draws=draws, image_size=image_size, seed=seed)
    if as_json:
        plain = {name: chosen.to_plain() for name, chosen in policies.items()}
        typer.echo(json.dumps({"picture": str(output), "policies": plain}, indent=2))
    else:
        wide_console().print(str(output), highlight=False, soft_wrap=True)


def _named_number(text: str) -> tuple[str, str]:
    """`NAME=NUMBER` as a pair; whether the number is one is for the settings to check."""
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise HemafastError(f"--um-per-pixel {text!r} is no NAME=UM.", "Write --um-per-pixel Acevedo_20=0.1.")
    return name, number
