"""From archives to a data set that one can look at: demo, prepare, verify, eda, augment-preview."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hemafast.cli.common import (
    Data,
    Json,
    Quiet,
    Verbose,
    app,
    listen,
    refuse_missing_data,
    wide_console,
)
from hemafast.cli.options import Asked, configured
from hemafast.config import POLICY, PrepareConfig, TrainConfig, checked, option_of, prepared_beside, train_config
from hemafast.errors import ClassesError, HemafastError, StoppedError
from hemafast.words import counted

if TYPE_CHECKING:
    from hemafast.preparation.build import PreparedPart
    from hemafast.preparation.parts import Part

_OF_POLICY = [name for name in TrainConfig.__dataclass_fields__ if option_of(TrainConfig, name).group == POLICY]


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
    from hemafast.preparation.sources.trees import list_archives

    progress = listen(verbose=verbose, quiet=quiet)
    present = list_archives(source) if source.is_dir() else []
    if present:
        progress.say(f"{source} already holds {', '.join(path.name for path in present)}; nothing drawn.")
        return
    paths = write_demo_archives(source, images=images, seed=seed, progress=progress)
    progress.say(
        f"Drew {counted(images, 'cell')} into {' and '.join(str(path) for path in paths)}. They are not photographs."
    )


@app.command(
    epilog="Examples: `hemafast prepare`, `hemafast prepare --folds 5`, "
    "`hemafast prepare --field-of-view 25 --um-per-pixel MyLab=0.11 --classes from-data`"
)
@configured(PrepareConfig)
def prepare(
    asked: Asked,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be taken as what; write nothing.")
    ] = False,
    part: Annotated[
        str | None,
        typer.Option(metavar="K/N", help="Read only this part of the images: a job of an array.", show_default="all"),
    ] = None,
    join: Annotated[bool, typer.Option("--join", help="Make the data set of all its parts.")] = False,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Threads.", show_default="the cores")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Turn archives into a verified data set: manifest, split, file lists, packed pixels.

    Every image is decoded and checked. Images that cannot be trusted are quarantined with a reason. The result appears
    whole or not at all. A second run changes nothing unless the archives or the settings have changed; after a kill,
    the same command continues.

    Several machines share the work with --part 1/8 to --part 8/8, and --join makes the same data set of it.
    """
    chosen = _chosen_part(part, join=join, dry_run=dry_run)
    source = asked.get("source", PrepareConfig.source)
    settings = checked(PrepareConfig, {"output": prepared_beside(source), **asked})
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.cli.tables import account_table, dataset_table, plan_tree, quarantine_table
    from hemafast.preparation.account import plan_summary
    from hemafast.preparation.build import join as join_dataset
    from hemafast.preparation.build import plan_preparation, prepare_part
    from hemafast.preparation.build import prepare as prepare_dataset

    results = wide_console()
    try:
        plan = plan_preparation(settings, progress=progress)
    except ClassesError:
        if not as_json:  # what is there helps to name it
            named = replace(settings, classes="from-data")
            results.print(plan_tree(settings.source, plan_summary(plan_preparation(named))))
        raise
    if not as_json and (dry_run or not quiet):
        results.print(plan_tree(settings.source, plan_summary(plan)))
    if dry_run:
        if as_json:
            typer.echo(json.dumps(plan_summary(plan), indent=2))
        _say(f"note: {note}" for note in plan.notes if not as_json)
        return
    how: dict[str, Any] = {"progress": progress, "workers": workers}
    try:
        if chosen is not None:
            _tell_part(prepare_part(settings, chosen, plan, **how), as_json=as_json)
            return
        prepared = (join_dataset if join else prepare_dataset)(settings, plan, **how)
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped. What was verified is kept.", "Run the same command to continue.") from error
    if as_json:
        quarantine = [image.row() for image in prepared.quarantine]
        said = {"folder": str(prepared.folder), "fresh": prepared.fresh, **prepared.info.model_dump(mode="json")}
        typer.echo(json.dumps(said | {"quarantine": quarantine}, indent=2))
        return
    results.print(dataset_table(prepared.info))
    if prepared.quarantine:
        results.print(quarantine_table(prepared.quarantine))
    results.print(account_table(prepared.info.account))
    written = "written" if prepared.fresh else "already up to date, nothing changed"
    _say([*(f"note: {note}" for note in prepared.info.notes), f"{prepared.folder}: {written}."])
    if settings.output != PrepareConfig.output:
        folds = "" if settings.folds is None else f" --folds {settings.folds}"
        command = "pretrain" if settings.ignore_labels else "train --preset quick"
        _say([f"Train on it with: hemafast {command} --data {shlex.quote(str(prepared.folder))}{folds}"])


def _chosen_part(text: str | None, *, join: bool, dry_run: bool) -> Part | None:
    """The part to read, None for all. Raises HemafastError for options that contradict each other."""
    from hemafast.preparation.parts import parse_part

    if text is None:
        return None
    if join or dry_run:
        other = "--join" if join else "--dry-run"
        raise HemafastError(f"--part {text} and {other} contradict each other.", f"Leave out --part or {other}.")
    return parse_part(text)


def _tell_part(read: PreparedPart, *, as_json: bool) -> None:
    if as_json:
        said = {"part": str(read.part), "folder": str(read.folder), "images": read.images, "fresh": read.fresh}
        typer.echo(json.dumps(said, indent=2))
        return
    done = f"{counted(read.images, 'image')} read" if read.fresh else "there already, nothing read"
    _say([f"Part {read.part} in {read.folder}: {done}. When all are read: the same command with --join."])


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        wide_console().print(line, soft_wrap=True)


@app.command(epilog="Example: `hemafast verify Source/prepared`")
def verify(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")] = TrainConfig.data,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Hash a prepared data set again: every image, every packed pixel, every list. Exit code 1 if anything differs."""
    from hemafast.preparation.verify import verify as verify_dataset

    found = verify_dataset(data, progress=listen(verbose=verbose, quiet=quiet or as_json))
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        results = wide_console()
        for problem in found.problems:
            results.print(f"{problem.file}: {problem.problem}")
        results.print(
            f"{data}: {counted(found.images, 'image')} and {counted(found.files, 'other file')} hashed, "
            f"{counted(len(found.problems), 'problem')}."
        )
    if found.problems:
        raise typer.Exit(1)


@app.command(epilog="Example: `hemafast eda --data Source/prepared --output runs/eda`")
def eda(
    data: Data = TrainConfig.data,
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

    progress = listen(verbose=verbose, quiet=quiet or as_json)
    page = write_eda(data, output, images_per_class=images_per_class, progress=progress)
    if as_json:
        typer.echo(json.dumps({"page": str(page), "pictures": sorted(str(path) for path in output.glob("*.png"))}))
    else:
        wide_console().print(str(page), soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast augment-preview`, `hemafast augment-preview --policy lineage --stain 0.2 --draws 4`, "
    "`hemafast augment-preview --policy lineage --parts`"
)
@configured(TrainConfig, fields=_OF_POLICY, common=_OF_POLICY)
def augment_preview(
    asked: Asked,
    data: Data = TrainConfig.data,
    output: Annotated[Path, typer.Option(help="PNG to write.")] = Path("runs/augment-preview.png"),
    policy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Policy to show; may be repeated.", show_default="all"),
    ] = None,
    cells: Annotated[int, typer.Option(min=1, max=50, help="Images to show, of all classes in turn.")] = 8,
    draws: Annotated[int, typer.Option(min=1, max=20, help="Rows per policy.")] = 2,
    image_size: Annotated[int, typer.Option(min=32, max=1024, help="Side of the views in pixels.")] = 224,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = TrainConfig.seed,
    parts: Annotated[bool, typer.Option("--parts", help="Show each change of a policy alone.")] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw the same cells under each augmentation policy, or under each of its changes, as training sees them."""
    train_config(**asked)  # the same checks as for training
    refuse_missing_data(data)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.data.augment import POLICIES, named_policy, parts_of
    from hemafast.data.preview import write_preview
    from hemafast.progress import stage

    policies = {name: named_policy(name, **asked) for name in policy or POLICIES}
    policies = parts_of(policies) if parts else policies
    with stage(progress, "drawing"):
        write_preview(data, output, policies, cells=cells, draws=draws, image_size=image_size, seed=seed)
    if as_json:
        plain = {name: chosen.to_plain() for name, chosen in policies.items()}
        typer.echo(json.dumps({"picture": str(output), "policies": plain}, indent=2))
    else:
        wide_console().print(str(output), soft_wrap=True)
