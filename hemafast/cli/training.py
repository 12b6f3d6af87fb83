"""Training, and what helps to set it up: train, lr-find."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from hemafast import config
from hemafast.cli.common import (
    TRAIN_DEFAULTS,
    CropArea,
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
    names_of,
    print_evaluation,
    progress,
    trains,
    wide_console,
)
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS

_LEARNS = "How it learns"
_model = partial(trains, rich_help_panel="The network")
_learns = partial(trains, rich_help_panel=_LEARNS)
_images = partial(trains, rich_help_panel="The images it learns from")
_runs = partial(trains, rich_help_panel="How it runs")
_OWN = "the model's own"


def _presets() -> str:
    """A list of all presets with what they say of themselves first."""
    said = {name: (preset.__doc__ or "\n").splitlines()[0] for name, preset in PRESETS.items()}
    return "".join(f"\n- {name}: {line}" for name, line in said.items())


@app.command(
    epilog="Examples: `hemafast train --preset quick`, "
    "`hemafast train --model efficientnet_b0 --onecycle`, "
    "`hemafast train --resume runs/NAME --epochs 50`, "
    "`torchrun --nproc-per-node 4 -m hemafast train`",
)
def train(
    preset: Annotated[
        str | None,
        typer.Option(help=f"Settings to start from. [{TRAIN_DEFAULTS.preset}]{_presets()}", metavar="NAME"),
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help="Settings file on top of the preset: TOML, or the config.json of a run."),
    ] = None,
    data: Annotated[Path | None, trains("data", "Prepared data set.")] = None,
    fold: Annotated[int | None, trains("fold", "Fold that validates, of data prepared in folds.", none="0")] = None,
    domains: Annotated[
        list[str] | None,
        trains("domains", "Domain to learn from; may be repeated.", none="all", metavar="NAME"),
    ] = None,
    output: Annotated[Path | None, trains("output", "Folder in which the run folder is made.")] = None,
    seed: Annotated[int | None, trains("seed", "Seed of weights, order, augmentation and dropout.")] = None,
    model: Annotated[str | None, _model("model", "Any timm image model.")] = None,
    pretrained: Annotated[
        config.Pretrained | None, _model("pretrained", "Pretrained weights: if they can be had, always, never.")
    ] = None,
    weights: Annotated[
        Path | None, _model("weights", "Weights file to start from, in place of those.", none="none")
    ] = None,
    image_size: Annotated[int | None, _model("image_size", "Side in pixels of what the network sees.")] = None,
    growing_from: Annotated[
        str | None,
        _model("growing_from", "Smaller sides at first, each for an equal share of the run.", metavar="N,N..."),
    ] = None,
    dropout: Annotated[float | None, _model("dropout", "Dropout before the classifier.", none=_OWN)] = None,
    drop_path: Annotated[float | None, _model("drop_path", "Stochastic depth.", none=_OWN)] = None,
    freeze_norm: Annotated[
        bool | None, _model("freeze_norm", "Leave batch norm as pretrained.", "--freeze-norm/--no-freeze-norm")
    ] = None,
    freeze_stages: Annotated[int | None, _model("freeze_stages", "Stages that do not learn, from the stem on.")] = None,
    epochs: Annotated[int | None, _learns("epochs", "Passes over the training images.")] = None,
    time_budget: Annotated[
        str | None,
        _learns(
            "time_budget", "In place of epochs: train as long as the whole command may take.", metavar="90s|10m|2h"
        ),
    ] = None,
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
        _learns("schedule", f"How the learning rate goes: {names_of(config.ScheduleName)}.", metavar="NAME"),
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
    ema: Annotated[
        float | None, _learns("ema", "Validate averaged weights, with this decay as 0.999; 0: none.")
    ] = None,
    loss: Annotated[
        config.LossName | None,
        _learns("loss", f"What is minimised: {names_of(config.LossName)}.", metavar="NAME"),
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
            f"Where pixels come from: {names_of(config.Input)}, which takes the first that fits.",
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
            "policy",
            f"Augmentation: {names_of(config.PolicyName)}; `hemafast augment-preview` shows it.",
            metavar="NAME",
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
        _runs("compile_mode", f"What it optimises for: {names_of(config.CompileMode)}.", metavar="MODE"),
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
            f"Where measurements go: {names_of(config.TrackerName)}; may be repeated. none: the CSV alone.",
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
        "domains": tuple(domains) if domains else None,
        "output": output,
        "seed": seed,
        "epochs": epochs,
        "time_budget": None if time_budget is None else config.seconds_of(time_budget),
        "batch_size": batch_size,
        "accumulate": accumulate,
        "image_size": image_size,
        "growing_from": None if growing_from is None else _sides(growing_from),
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
    console = console_of(verbose=verbose, quiet=quiet or as_json)
    going_on = resume not in (None, "auto")
    if going_on and (preset or config_file):
        raise HemafastError("A resumed run has its settings already.", "Leave out --preset and --config.")
    if allow_changes and not going_on:
        raise HemafastError("--allow-changes is for --resume RUN.", "Leave it out, or name the run.")

    began = _start_of_process()
    from hemafast.engine import trainer
    from hemafast.engine.run import read_config

    if going_on:
        changes = {name: value for name, value in asked.items() if value is not None}
        folder = trainer.resume(Path(str(resume)), console, changes, allow_changes=allow_changes, began=began)
    else:
        settings = config.train_config(preset, config_file, **asked)
        folder = trainer.train(settings, console, go_on=resume == "auto", began=began)
    if folder is not None:
        print_evaluation(folder, None, read_config(folder).device, as_json=as_json)


@app.command(epilog="Examples: `hemafast lr-find`, `hemafast lr-find --preset quick --batch-size 64`")
def lr_find(
    preset: Annotated[
        str | None, typer.Option(help="Settings to start from.", show_default=TRAIN_DEFAULTS.preset, metavar="NAME")
    ] = None,
    config_file: Annotated[Path | None, typer.Option("--config", help="Settings file on top of the preset.")] = None,
    data: Annotated[Path | None, trains("data", "Prepared data set.")] = None,
    model: Annotated[str | None, trains("model", "Any timm image model.")] = None,
    batch_size: Annotated[int | None, trains("batch_size", "Images a step.")] = None,
    image_size: Annotated[int | None, trains("image_size", "Side in pixels of what the network sees.")] = None,
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
    console = console_of(verbose=verbose, quiet=quiet or as_json)
    with progress(console, "raising the rate", unit="steps") as advance:
        curve = find_rate(settings, first=first, last=last, steps=steps, on_step=advance)
    picture = write_curve(curve, output)
    said = {"suggestion": curve.suggestion, "steepest": curve.steepest, "steps": len(curve.rates)}
    if as_json:
        typer.echo(json.dumps(said | {"picture": str(picture)}, indent=2))
        return
    line = f"suggested peak: --lr {curve.suggestion:.1e} (the loss falls fastest at {curve.steepest:.1e})"
    wide_console().print(f"{line}\n{picture}", highlight=False, soft_wrap=True)


def _sides(text: str) -> tuple[int, ...]:
    """Sides in pixels, as "96,112"; "off" is none of them. Raises HemafastError for anything else."""
    parts = () if text == "off" else text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise HemafastError(f"{text!r} are no sides in pixels.", "Write them as 96,112, or off.")
    return tuple(map(int, parts))


def _start_of_process() -> float:
    """The moment of time.monotonic at which this process began: what it imported counts towards a time budget."""
    import psutil

    return time.monotonic() - (time.time() - float(psutil.Process().create_time()))


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
