"""The `hemafast` command: parse, call one function, print."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from hemafast import __version__, config
from hemafast.config import PrepareConfig, TrainConfig
from hemafast.errors import HemafastError, StoppedError
from hemafast.presets import PRESETS

app = typer.Typer(
    name="hemafast",
    help="Train classifiers of single-cell blood images, fast. Start with `hemafast prepare`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but warnings, errors and results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Data = Annotated[Path, typer.Option(help="Prepared data set.")]


def _changes(text: str, **more: Any) -> Any:
    """An option that changes one thing about the policy."""
    return typer.Option(help=text, rich_help_panel="Changes to the policy, which else are its own", **more)


CropArea = Annotated[
    tuple[float, float] | None,
    _changes("Least and largest share of the square to cut out, as 0.5 1.", metavar="SHARE SHARE"),
]
Zoom = Annotated[float | None, _changes("How much the window may grow or shrink, as 0.1.")]
Symmetry = Annotated[config.Symmetry | None, _changes("Mirror, or all eight flips and quarter turns.")]
Rotation = Annotated[float | None, _changes("Largest angle in degrees.")]
RandAugmentOps = Annotated[int | None, _changes("Operations of RandAugment an image.")]
RandAugmentMagnitude = Annotated[int | None, _changes("Their strength, 0 to 30.")]
Stain = Annotated[float | None, _changes("How much the absorption of each stain varies, as 0.05.")]
Erase = Annotated[float | None, _changes("Share of the images with a rectangle blanked.")]

_DEFAULTS = PrepareConfig()
_TRAIN_DEFAULTS = TrainConfig()
_PIPE_WIDTH = 160


def main() -> None:
    """Run the command line; an error that a user can mend is one line and exit code 2, a signal 128 and its number."""
    try:
        app()
    except HemafastError as error:
        logging.getLogger("hemafast").debug("raised here", exc_info=error)
        _exit(str(error), error.exit_code)
    except OSError as error:  # a disk or a permission that nobody foresaw
        logging.getLogger("hemafast").debug("raised here", exc_info=error)
        _exit(f"{error}. Check that it is there, and that you may read or write it.", HemafastError.exit_code)


def _exit(message: str, code: int) -> None:
    typer.secho(f"error: {' '.join(message.splitlines())}", fg=typer.colors.RED, err=True)
    sys.exit(code)


def _by_preset(field: str, none: str) -> str:
    """The default of a training option, and what presets make of it; `none` stands for None."""
    plain = getattr(_TRAIN_DEFAULTS, field)
    presets: dict[Any, list[str]] = {plain: []}
    for name, preset in PRESETS.items():
        presets.setdefault(preset().get(field, plain), []).append(name)
    del presets[plain]
    return "; ".join([_typed(plain, none), *(f"{', '.join(presets[value])}: {value}" for value in presets)])


def _typed(value: Any, none: str) -> str:
    """A value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return none if value is None else " ".join(value) if isinstance(value, tuple) else str(value)


def _trains(field: str, text: str, name: str | None = None, *, none: str = "off", **more: Any) -> Any:
    """A training option whose default comes from the preset; `none` says what None means."""
    # Not typer's own [default: ...], which takes a line for itself.
    text = f"{text} [{_by_preset(field, none)}]"
    return typer.Option(*([name] if name else []), help=text, show_default=False, **more)


def _names(kind: Any) -> str:
    """The values of a Literal, `auto` at the end."""
    return ", ".join(sorted(get_args(kind), key=lambda name: name == "auto"))


def _presets() -> str:
    """A list of all presets with what they say of themselves first."""
    said = {name: (preset.__doc__ or "\n").splitlines()[0] for name, preset in PRESETS.items()}
    return "".join(f"\n- {name}: {line}" for name, line in said.items())


_LEARNS = "How it learns"
_model = partial(_trains, rich_help_panel="The network")
_learns = partial(_trains, rich_help_panel=_LEARNS)
_images = partial(_trains, rich_help_panel="The images it learns from")
_runs = partial(_trains, rich_help_panel="How it runs")
_OWN = "the model's own"


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

    console = _console(verbose=verbose, quiet=quiet)
    present = list_archives(source) if source.is_dir() else []
    if present:
        console.print(f"{source} already holds {', '.join(path.name for path in present)}; nothing drawn.")
        return
    with _progress(console, "drawing cells") as advance:
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

    console = _console(verbose=verbose, quiet=quiet or as_json)
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
        with _progress(console, "reading images") as advance:
            prepared = prepare_dataset(settings, advance, workers=workers)
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped. What was verified is kept.", "Run the same command to go on.") from error
    if as_json:
        quarantine = [image.row() for image in prepared.quarantine]
        said = {"folder": str(prepared.folder), "fresh": prepared.fresh, **prepared.info.model_dump(mode="json")}
        typer.echo(json.dumps(said | {"quarantine": quarantine}, indent=2))
        return
    from hemafast.tables import dataset_table, quarantine_table

    results = _wide_console()
    results.print(dataset_table(prepared.info))
    if prepared.quarantine:
        results.print(quarantine_table(prepared.quarantine))
    written = "written" if prepared.fresh else "already up to date, nothing changed"
    for line in (*(f"note: {note}" for note in prepared.info.notes), f"{prepared.folder}: {written}."):
        results.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command(epilog="Example: `hemafast verify Source/prepared`")
def verify(
    data: Annotated[Path, typer.Argument(help="Prepared data set.")] = _TRAIN_DEFAULTS.data,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Hash a prepared data set again: every image, every packed pixel, every list. Exit code 1 if anything differs."""
    from hemafast.prepare.check import check

    console = _console(verbose=verbose, quiet=quiet or as_json)
    with _progress(console, "hashing images") as advance:
        found = check(data, advance)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2))
    else:
        results = _wide_console()
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
    data: Data = _TRAIN_DEFAULTS.data,
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

    console = _console(verbose=verbose, quiet=quiet or as_json)
    with console.status("drawing"):
        page = write_eda(data, output, images_per_class=images_per_class)
    if as_json:
        typer.echo(json.dumps({"page": str(page), "pictures": sorted(str(path) for path in output.glob("*.png"))}))
    else:
        _wide_console().print(str(page), highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast augment-preview`, `hemafast augment-preview --policy lineage --stain 0.2 --draws 4`"
)
def augment_preview(
    data: Data = _TRAIN_DEFAULTS.data,
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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the draws.")] = _TRAIN_DEFAULTS.seed,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Draw the same cells under each augmentation policy, as training would see them."""
    from hemafast.data.augment import POLICIES, named_policy
    from hemafast.data.preview import write_preview

    console = _console(verbose=verbose, quiet=quiet or as_json)
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
        _wide_console().print(str(output), highlight=False, soft_wrap=True)


@app.command(
    epilog="Examples: `hemafast train --preset quick`, "
    "`hemafast train --model efficientnet_b0 --onecycle`, "
    "`hemafast train --resume runs/NAME --epochs 50`, "
    "`torchrun --nproc-per-node 4 -m hemafast train`",
)
def train(
    preset: Annotated[
        str | None,
        typer.Option(help=f"Settings to start from. [{_TRAIN_DEFAULTS.preset}]{_presets()}", metavar="NAME"),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file on top of the preset: TOML, or the config.json of a run."),
    ] = None,
    data: Annotated[Path | None, _trains("data", "Prepared data set.")] = None,
    fold: Annotated[int | None, _trains("fold", "Fold that validates, of data prepared in folds.", none="0")] = None,
    output: Annotated[Path | None, _trains("output", "Folder in which the run folder is made.")] = None,
    seed: Annotated[int | None, _trains("seed", "Seed of weights, order, augmentation and dropout.")] = None,
    model: Annotated[str | None, _model("model", "Any timm image model.")] = None,
    pretrained: Annotated[
        config.Pretrained | None, _model("pretrained", "Pretrained weights: if they can be had, always, never.")
    ] = None,
    weights: Annotated[
        Path | None, _model("weights", "Weights file to start from, in place of those.", none="none")
    ] = None,
    image_size: Annotated[int | None, _model("image_size", "Side in pixels of what the network sees.")] = None,
    dropout: Annotated[float | None, _model("dropout", "Dropout before the classifier.", none=_OWN)] = None,
    drop_path: Annotated[float | None, _model("drop_path", "Stochastic depth.", none=_OWN)] = None,
    freeze_norm: Annotated[
        bool | None, _model("freeze_norm", "Leave batch norm as pretrained.", "--freeze-norm/--no-freeze-norm")
    ] = None,
    freeze_stages: Annotated[int | None, _model("freeze_stages", "Stages that do not learn, from the stem on.")] = None,
    epochs: Annotated[int | None, _learns("epochs", "Passes over the training images.")] = None,
    batch_size: Annotated[
        str | None,
        _learns(
            "batch_size", "Images a process works on at once; auto tries what fits or is fastest.", metavar="N|auto"
        ),
    ] = None,
    accumulate: Annotated[int | None, _learns("accumulate", "Batches that make one update.")] = None,
    lr: Annotated[float | None, _learns("lr", "Learning rate; the peak of it under a schedule.")] = None,
    schedule: Annotated[
        config.ScheduleName | None,
        _learns("schedule", f"How the learning rate goes: {_names(config.ScheduleName)}.", metavar="NAME"),
    ] = None,
    onecycle: Annotated[
        bool | None,
        typer.Option(
            "--onecycle/--no-onecycle", help="Short for --schedule onecycle, or constant.", rich_help_panel=_LEARNS
        ),
    ] = None,
    warmup: Annotated[
        float | None, _learns("warmup", "Share of the steps that the rate rises.", none="the schedule's own")
    ] = None,
    weight_decay: Annotated[float | None, _learns("weight_decay", "Of AdamW; norms and biases have none.")] = None,
    layer_decay: Annotated[
        float | None, _learns("layer_decay", "Each layer learns at this share of the rate of the one above.")
    ] = None,
    clip_grad: Annotated[float | None, _learns("clip_grad", "Largest norm of the gradients.")] = None,
    ema: Annotated[float | None, _learns("ema", "Validate averaged weights, with this decay as 0.999.")] = None,
    loss: Annotated[
        config.LossName | None,
        _learns("loss", f"What is minimised: {_names(config.LossName)}.", metavar="NAME"),
    ] = None,
    weighted_loss: Annotated[
        bool | None,
        typer.Option(
            "--weighted-loss/--no-weighted-loss",
            help="Short for --loss weighted, or cross-entropy.",
            rich_help_panel=_LEARNS,
        ),
    ] = None,
    focal_gamma: Annotated[float | None, _learns("focal_gamma", "Of --loss focal.")] = None,
    logit_tau: Annotated[float | None, _learns("logit_tau", "Of --loss logit-adjusted.")] = None,
    label_smoothing: Annotated[
        float | None, _learns("label_smoothing", "Share of the target spread over all classes.")
    ] = None,
    input: Annotated[
        config.Input | None,
        _images(
            "input",
            f"Where pixels come from: {_names(config.Input)}, which takes the first that fits.",
            metavar="NAME",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        _images("sampler", "Classes as often as they are (natural), balanced, or mixed:SHARE of both.", metavar="NAME"),
    ] = None,
    mixup: Annotated[float | None, _images("mixup", "Alpha of blending pairs of images; 0 blends none.")] = None,
    cutmix: Annotated[float | None, _images("cutmix", "Alpha of swapping rectangles; 0 swaps none.")] = None,
    policy: Annotated[
        config.PolicyName | None,
        _images(
            "policy", f"Augmentation: {_names(config.PolicyName)}; `hemafast augment-preview` shows it.", metavar="NAME"
        ),
    ] = None,
    crop_area: CropArea = None,
    zoom: Zoom = None,
    symmetry: Symmetry = None,
    rotation: Rotation = None,
    randaugment_ops: RandAugmentOps = None,
    randaugment_magnitude: RandAugmentMagnitude = None,
    stain: Stain = None,
    erase: Erase = None,
    device: Annotated[config.Device | None, _runs("device", "Where the model runs.")] = None,
    amp: Annotated[config.Amp | None, _runs("amp", "Autocast precision.")] = None,
    compile: Annotated[
        config.Compile | None, _runs("compile", "torch.compile; auto tries it where the run is long enough.")
    ] = None,
    compile_mode: Annotated[
        config.CompileMode | None,
        _runs("compile_mode", f"What it optimises for: {_names(config.CompileMode)}.", metavar="MODE"),
    ] = None,
    threads: Annotated[
        int | None, _runs("threads", "Threads of the input pipeline.", none="chosen for the machine")
    ] = None,
    sync_norm: Annotated[
        bool | None, _runs("sync_norm", "Batch norm over all processes (CUDA).", "--sync-norm/--no-sync-norm")
    ] = None,
    save_every: Annotated[float | None, _runs("save_every", "Minutes between checkpoints within an epoch.")] = None,
    keep: Annotated[int | None, _runs("keep", "Checkpoints to keep.")] = None,
    on_nonfinite: Annotated[
        config.OnNonfinite | None,
        _runs("on_nonfinite", "What a loss or gradient that is not finite does: stop the run, or skip the update."),
    ] = None,
    nonfinite_budget: Annotated[
        int | None, _runs("nonfinite_budget", "Updates that may be skipped before the run stops all the same.")
    ] = None,
    track: Annotated[
        list[str] | None,
        _runs(
            "track",
            f"Where measurements go: {_names(config.TrackerName)}; may be repeated. none: the CSV alone.",
            metavar="NAME",
        ),
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="RUN|auto",
            help="Run folder to go on with; auto: the newest run of these very settings, or else a new one.",
            rich_help_panel="Going on",
        ),
    ] = None,
    allow_changes: Annotated[
        bool,
        typer.Option("--allow-changes", help="Let --resume RUN change what is learned.", rich_help_panel="Going on"),
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier, evaluate its best epoch and write a report.

    Stops at its next step on Ctrl-C, SIGTERM or SIGUSR1, saves, and exits with 130, 143 or 138.

    Any option goes before the file of --config, and that before the preset. Brackets hold the default, and what presets
    set instead.
    """
    asked = {
        "data": data,
        "fold": fold,
        "output": output,
        "seed": seed,
        "epochs": epochs,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "image_size": image_size,
        "input": input,
        "sampler": sampler,
        "model": model,
        "pretrained": pretrained,
        "weights": weights,
        "dropout": dropout,
        "drop_path": drop_path,
        "freeze_norm": freeze_norm,
        "freeze_stages": freeze_stages,
        "lr": lr,
        "schedule": _long_form("onecycle", onecycle, ("onecycle", "constant"), "schedule", schedule),
        "warmup": warmup,
        "weight_decay": weight_decay,
        "layer_decay": layer_decay,
        "clip_grad": clip_grad,
        "ema": ema,
        "loss": _long_form("weighted-loss", weighted_loss, ("weighted", "cross-entropy"), "loss", loss),
        "focal_gamma": focal_gamma,
        "logit_tau": logit_tau,
        "label_smoothing": label_smoothing,
        "mixup": mixup,
        "cutmix": cutmix,
        "policy": policy,
        "crop_area": crop_area,
        "zoom": zoom,
        "symmetry": symmetry,
        "rotation": rotation,
        "randaugment_ops": randaugment_ops,
        "randaugment_magnitude": randaugment_magnitude,
        "stain": stain,
        "erase": erase,
        "device": device,
        "amp": amp,
        "compile": compile,
        "compile_mode": compile_mode,
        "threads": threads,
        "sync_norm": sync_norm,
        "save_every": save_every,
        "keep": keep,
        "on_nonfinite": on_nonfinite,
        "nonfinite_budget": nonfinite_budget,
        "track": tuple(name for name in track if name != "none") if track else None,
    }
    console = _console(verbose=verbose, quiet=quiet or as_json)
    going_on = resume not in (None, "auto")
    if going_on and (preset or config_file):
        raise HemafastError("A resumed run has its settings already.", "Leave out --preset and --config.")
    if allow_changes and not going_on:
        raise HemafastError("--allow-changes is for --resume RUN.", "Leave it out, or name the run.")

    from hemafast.engine import trainer
    from hemafast.engine.run import read_config

    if going_on:
        changes = {name: value for name, value in asked.items() if value is not None}
        folder = trainer.resume(Path(str(resume)), console, changes, allow_changes=allow_changes)
    else:
        folder = trainer.train(config.train_config(preset, config_file, **asked), console, go_on=resume == "auto")
    if folder is not None:
        _evaluate(folder, None, read_config(folder).device, as_json=as_json)


@app.command(epilog="Examples: `hemafast lr-find`, `hemafast lr-find --preset quick --batch-size 64`")
def lr_find(
    preset: Annotated[
        str | None, typer.Option(help="Settings to start from.", show_default=_TRAIN_DEFAULTS.preset, metavar="NAME")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file on top of the preset.")] = None,
    data: Annotated[Path | None, _trains("data", "Prepared data set.")] = None,
    model: Annotated[str | None, _trains("model", "Any timm image model.")] = None,
    batch_size: Annotated[int | None, _trains("batch_size", "Images a step.")] = None,
    image_size: Annotated[int | None, _trains("image_size", "Side in pixels of what the network sees.")] = None,
    first: Annotated[float, typer.Option(help="Rate of the first step.")] = 1e-6,
    last: Annotated[float, typer.Option(help="Rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps in all; it ends early once the loss breaks out.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for the picture and the figures.")] = Path("runs/lr_find"),
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find a learning rate: let it grow step by step, draw the loss, and suggest the peak of a schedule."""
    from hemafast.engine.lr_find import find_rate, write_curve

    asked = {"data": data, "model": model, "batch_size": batch_size, "image_size": image_size}
    settings = config.train_config(preset, config_file, **asked)
    console = _console(verbose=verbose, quiet=quiet or as_json)
    with _progress(console, "raising the rate", unit="steps") as advance:
        curve = find_rate(settings, first=first, last=last, steps=steps, on_step=advance)
    picture = write_curve(curve, output)
    said = {"suggestion": curve.suggestion, "steepest": curve.steepest, "steps": len(curve.rates)}
    if as_json:
        typer.echo(json.dumps(said | {"picture": str(picture)}, indent=2))
        return
    line = f"suggested peak: --lr {curve.suggestion:.1e} (the loss falls fastest at {curve.steepest:.1e})"
    _wide_console().print(f"{line}\n{picture}", highlight=False, soft_wrap=True)


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
    _console(verbose=verbose, quiet=quiet or as_json)
    _evaluate(run, data, device, as_json=as_json)


@app.command(epilog="Example: `hemafast bench --json bench.json`")
def bench(
    data: Data = _TRAIN_DEFAULTS.data,
    model: Annotated[str, typer.Option(help="Any timm image model.")] = "efficientnet_b0",
    image_size: Annotated[int, typer.Option(min=32, help="Side in pixels of what the network sees.")] = 224,
    batch_size: Annotated[int, typer.Option(min=2, help="Images a training step.")] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads of the loaders.", show_default="the cores, at most 8")
    ] = None,
    device: Annotated[config.Device, typer.Option(help="Where the model runs.")] = "auto",
    amp: Annotated[config.Amp, typer.Option(help="Autocast precision.")] = "auto",
    compile: Annotated[config.Compile, typer.Option(help="torch.compile.")] = "auto",
    rounds: Annotated[int, typer.Option(help="Measurements of each station, at least 3.")] = 5,
    seconds: Annotated[float, typer.Option(min=0.1, help="Least length of a measurement.")] = 2.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything measured to this file.")] = None,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Measure loader and training step, alone and together, beside plain PyTorch, and say what training is bound by.

    Each station runs in its own process; all take turns, round after round, so that a machine that slows down slows all
    of them. About four minutes on two cores.
    """
    from hemafast.bench.run import run_bench
    from hemafast.bench.stations import Bench
    from hemafast.tables import bench_table

    console = _console(verbose=verbose, quiet=quiet)
    chosen = Bench(
        data=data,
        model=model,
        image_size=image_size,
        batch_size=batch_size,
        threads=threads,
        device=device,
        amp=amp,
        compile=compile,
    )
    with console.status("measuring") as status:
        result = run_bench(
            chosen, rounds=rounds, seconds=seconds, on_round=lambda name: status.update(f"measuring: {name}")
        )
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    results = _wide_console()
    results.print(bench_table(result))
    results.print(result["bound_by"], highlight=False)


def _named_number(text: str) -> tuple[str, str]:
    """`NAME=NUMBER` as a pair; whether the number is one is for the settings to check."""
    name, equals, number = text.rpartition("=")
    if not equals or not name:
        raise HemafastError(f"--um-per-pixel {text!r} is no NAME=UM.", "Write --um-per-pixel Acevedo_20=0.1.")
    return name, number


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hemafast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the command as a whole."""


def _evaluate(folder: Path, data: Path | None, device: config.Device, *, as_json: bool) -> None:
    from hemafast.evaluate.evaluate import evaluate_run
    from hemafast.evaluate.report import write_report
    from hemafast.tables import score_table, training_lines

    metrics = evaluate_run(folder, data=data, device=device)
    report = write_report(folder)
    if as_json:
        typer.echo(json.dumps({"run": str(folder), "report": str(report), **metrics}, indent=2))
        return
    results = _wide_console()
    results.print(score_table(metrics))
    for line in training_lines(metrics):
        results.print(line, highlight=False)
    results.print(f"run folder  {folder}\nreport      {report}", highlight=False, soft_wrap=True)


def _long_form(short: str, given: bool | None, means: tuple[str, str], option: str, name: str | None) -> str | None:
    """The name that `option` gets, by itself or by its short form, which `means` one name or with --no- another.

    Raises HemafastError if both are given and disagree.
    """
    if given is None:
        return name
    value = means[0] if given else means[1]
    if name not in (None, value):
        said = f"--{short}" if given else f"--no-{short}"
        raise HemafastError(f"{said} and --{option} {name} exclude each other.", "Give one of them.")
    return value


def _console(*, verbose: bool, quiet: bool) -> Console:
    """Send the log to standard error, and return a console for progress there."""
    from rich.logging import RichHandler

    console = _wide_console(stderr=True, quiet=quiet)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(
        console=_wide_console(stderr=True) if quiet else console,
        show_path=verbose,
        show_time=verbose,
        rich_tracebacks=True,
        highlighter=None,
    )
    handler.setLevel(level)  # on the handler: train.log hears everything however quiet the terminal is
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("hemafast").setLevel(logging.DEBUG)
    return console


def _wide_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal; a pipe or a file gets lines unbroken."""
    console = Console(stderr=stderr, quiet=quiet)
    return console if console.is_terminal else Console(stderr=stderr, quiet=quiet, width=_PIPE_WIDTH)


@contextmanager
def _progress(console: Console, what: str, unit: str = "images") -> Iterator[Callable[[int, int], None]]:
    """A progress bar with images a second; yields a function of images done and images in all."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} {unit}/s" if task.speed else "")

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Remaining())
    with Progress(*columns, console=console, transient=True, disable=console.quiet or not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
