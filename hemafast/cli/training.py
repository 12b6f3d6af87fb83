"""Training, and what helps to set it up: train, lr-find, runs."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hemafast.cli.common import ConfigFile, Json, Quiet, Verbose, app, listen, refuse_missing_data, wide_console
from hemafast.cli.options import REPEATING, RESUMING, Asked, configured
from hemafast.collector import resting
from hemafast.config import TrainConfig, refuse_other_command, train_config
from hemafast.errors import HemafastError
from hemafast.files import make_folder
from hemafast.progress import Progress
from hemafast.run_folder import ENCODER, find_run, read_config, summaries

STARTING = (
    "starting: libraries, data and network take some 5 s, up to 20 s from a cold disk, and 10 s more where the kernels "
    "of the augmentation are compiled, once for each installation"
)
"""Said to who watches a terminal, before the libraries are imported, which prints nothing."""

Resume = Annotated[
    str | None,
    typer.Option(
        metavar="RUN|latest|auto",
        help="Continue a run. auto: the newest run with exactly these settings, or else a new one.",
        rich_help_panel=RESUMING,
    ),
]
AllowChanges = Annotated[
    bool,
    typer.Option(
        "--allow-changes", help="Let --resume RUN change settings that matter.", rich_help_panel=RESUMING, hidden=True
    ),
]

Folds = Annotated[
    int | None,
    typer.Option(
        metavar="K",
        min=2,
        help="Train on each of the K folds of data prepared with --folds K: every image is scored by a model that has "
        "not seen it.",
        rich_help_panel=REPEATING,
    ),
]
Seeds = Annotated[
    int,
    typer.Option(
        metavar="N",
        min=1,
        help="Train with N seeds, from --seed on: how far do trainings differ?",
        rich_help_panel=REPEATING,
    ),
]
Parallel = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        min=1,
        help="With --folds or --seeds: runs at a time, which share the cores.",
        show_default="one for each core; one on a GPU or with --time-budget",
        rich_help_panel=REPEATING,
        hidden=True,
    ),
]

_TRIED = ("preset", "data", "model", "batch_size", "image_size")


@app.command(
    epilog="Examples: `hemafast train --preset quick`, "
    "`hemafast train --model efficientnet_b0 --onecycle`, "
    "`hemafast train --preset fast --folds 5 --seeds 3`, "
    "`hemafast train --resume runs/NAME --epochs 50`, "
    "`torchrun --nproc-per-node 4 -m hemafast train`"
)
@configured(TrainConfig)
def train(
    asked: Asked,
    config_file: ConfigFile = None,
    folds: Folds = None,
    seeds: Seeds = 1,
    parallel: Parallel = None,
    resume: Resume = None,
    allow_changes: AllowChanges = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train a classifier, evaluate its best epoch and write a report.

    Ctrl-C saves the run and stops it after the current update; so do SIGTERM, SIGUSR1 and other ends of a job.

    With --folds or --seeds, it trains several times with the same settings, and says how sure the score is: one table
    with mean, spread and intervals, and a page. The same command continues (exit code 1 if a run failed).

    Options override --config, and --config overrides --preset. Brackets show the default and what presets set instead.
    """
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    if folds is not None or seeds > 1:
        if resume not in (None, "auto") or allow_changes:
            raise HemafastError("--resume RUN is about one run.", "Leave it out: the same command continues.")
        settings = train_config(asked.pop("preset", None), config_file, **asked)
        _train_several(settings, folds, seeds, parallel, progress, as_json=as_json)
        return
    if parallel is not None:
        raise HemafastError("--parallel has no effect on one run.", "Add --folds or --seeds, or leave it out.")
    folder = _train(asked, config_file, resume, allow_changes=allow_changes, pretrains=False, progress=progress)
    if folder is not None:
        from hemafast.cli.evaluation import print_evaluation

        print_evaluation(folder, None, "val", read_config(folder).device, as_json=as_json, progress=progress)


@app.command(
    epilog="Examples: `hemafast pretrain`, `hemafast pretrain --method byol --epochs 100`, "
    "`hemafast train --preset fast --weights runs/NAME`"
)
@configured(TrainConfig, pretrains=True, defaults={"preset": "pretrain"})
def pretrain(
    asked: Asked,
    config_file: ConfigFile = None,
    resume: Resume = None,
    allow_changes: AllowChanges = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Let a network learn features from images without their labels, for `hemafast train --weights RUN`.

    It stops, resumes and runs on several devices as `hemafast train` does. The preset is `pretrain`, and options
    override it. Labels only score the epochs: by the nearest neighbours of the validation images.
    """
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    if resume in (None, "auto") and config_file is None:
        asked.setdefault("preset", "pretrain")
    folder = _train(asked, config_file, resume, allow_changes=allow_changes, pretrains=True, progress=progress)
    if folder is not None:
        _print_pretraining(folder, as_json=as_json)


def _train(
    asked: Asked,
    config_file: Path | None,
    resume: str | None,
    *,
    allow_changes: bool,
    pretrains: bool,
    progress: Progress,
) -> Path | None:
    """Train a new run, or go on with one; None in all but the first process of torchrun.

    Raises HemafastError if it is a run of the other command.
    """
    if allow_changes and resume in (None, "auto"):
        raise HemafastError("--allow-changes only works with --resume RUN.", "Leave it out, or name the run.")
    began = _start_of_process()
    if resume in (None, "auto"):
        settings = train_config(asked.pop("preset", None), config_file, **asked)
        refuse_other_command(settings, pretrains=pretrains)
        refuse_missing_data(settings.data)
        _say_that_it_starts()
        with resting():
            from hemafast.engine import trainer

        return trainer.train(settings, go_on=resume == "auto", began=began, progress=progress)
    if "preset" in asked or config_file:
        raise HemafastError("A resumed run already has its settings.", "Leave out --preset and --config.")
    named = find_run(str(resume))
    refuse_other_command(read_config(named), pretrains=pretrains)
    _say_that_it_starts()
    with resting():
        from hemafast.engine import trainer

    return trainer.resume(named, asked, allow_changes=allow_changes, began=began, progress=progress)


def _train_several(
    settings: TrainConfig, folds: int | None, seeds: int, parallel: int | None, progress: Progress, *, as_json: bool
) -> None:
    """Train on all folds or with several seeds, and print what the scores are worth. Exits with 1 if a run failed."""
    refuse_other_command(settings, pretrains=False)
    refuse_missing_data(settings.data)
    _say_that_it_starts()
    with resting():
        from hemafast.cli.experiments import resumable, show_result
        from hemafast.cli.tables import repeats_results
        from hemafast.experiments.repeats import PAGE, read_repeats, repeat_training

    with resumable():
        folder = repeat_training(settings, folds=folds, seeds=seeds, parallel=parallel, progress=progress)
    show_result({"folder": str(folder)} | read_repeats(folder), repeats_results, folder / PAGE, as_json=as_json)


def _print_pretraining(folder: Path, *, as_json: bool) -> None:
    """The last epoch of a pretraining run, and what to do with it."""
    from hemafast.engine.journal import read_rows

    last = [row for row in read_rows(folder) if row["phase"] == "val"][-1]
    if as_json:
        scores = {name: value for name, value in last.items() if name not in ("epoch", "phase")}
        typer.echo(json.dumps({"folder": str(folder), "weights": str(folder / ENCODER), **scores}, indent=2))
        return
    wide_console().print(f"{folder / ENCODER}\nTrain from it: hemafast train --weights {folder}", soft_wrap=True)


@app.command(epilog="Examples: `hemafast lr-find`, `hemafast lr-find --preset quick --batch-size 64`")
@configured(TrainConfig, fields=TrainConfig.__dataclass_fields__.keys() - {"output"}, common=_TRIED)
def lr_find(
    asked: Asked,
    config_file: ConfigFile = None,
    first: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    last: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 1.0,
    steps: Annotated[int, typer.Option(help="Steps in all. The test ends early when the loss diverges.")] = 100,
    output: Annotated[Path, typer.Option(help="Folder for the plot and the figures.")] = Path("runs/lr_find"),
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Find a learning rate: raise it step by step, plot the loss, and suggest the peak of a schedule."""
    settings = train_config(asked.pop("preset", None), config_file, **asked)
    refuse_missing_data(settings.data)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.engine.lr_find import find_rate, write_curve

    make_folder(output)
    curve = find_rate(settings, first=first, last=last, steps=steps, progress=progress)
    if curve is None:  # the first process of torchrun writes
        return
    picture = write_curve(curve, output)
    said = {"suggestion": curve.suggestion, "steepest": curve.steepest, "steps": len(curve.rates)}
    if as_json:
        typer.echo(json.dumps(said | {"picture": str(picture)}, indent=2))
        return
    line = f"suggested peak: --lr {curve.suggestion:.1e} (the loss falls fastest at {curve.steepest:.1e})"
    wide_console().print(f"{line}\n{picture}", soft_wrap=True)


@app.command(epilog="Examples: `hemafast runs`, `hemafast runs --output runs --json`")
def runs(
    output: Annotated[Path, typer.Option(help="Folder of the runs.")] = TrainConfig.output,
    as_json: Json = False,
) -> None:
    """List the runs: name, data, model, score with its interval, state, and when they began."""
    from hemafast.evaluate.elsewhere import home_and_elsewhere

    found = summaries(output)
    if as_json:
        listed = [asdict(run) | {"told": home_and_elsewhere(Path(run.folder))} for run in found]
        typer.echo(json.dumps(listed, indent=2))
    elif found:
        from hemafast.cli.tables import run_table

        wide_console().print(run_table(found))
        said = "Scores are at home. `hemafast report RUN` and --json say what is known of other laboratories."
        wide_console().print(said, soft_wrap=True)
    else:
        wide_console().print(f"{output} holds no runs. Start one with `hemafast train`.")


def _say_that_it_starts() -> None:
    if sys.stderr.isatty() and not int(os.environ.get("RANK") or 0):  # of the processes of torchrun, the first
        logging.getLogger("hemafast").info(STARTING)


def _start_of_process() -> float:
    """The moment of time.monotonic at which this process began: what it imported counts towards a time budget."""
    import psutil

    return time.monotonic() - (time.time() - float(psutil.Process().create_time()))
