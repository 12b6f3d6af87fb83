"""Questions that take several runs or models to answer: crossdomain, sweep, tune, audit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from hemafast.cli.common import (
    ClassMap,
    ConfigFile,
    Device,
    Json,
    Quiet,
    Verbose,
    app,
    listen,
    refuse_missing_data,
    wide_console,
)
from hemafast.cli.new_images import whole_or_nothing
from hemafast.cli.options import Asked, configured
from hemafast.config import TrainConfig, parse_class_map, seconds_of, train_config
from hemafast.errors import StoppedError
from hemafast.experiments.published import refuse_unknown_experiments
from hemafast.experiments.space import DEFAULT, default_space, parse_space
from hemafast.run_folder import LATEST, find_run, is_run, read_config

_COMPARED = ("preset", "data", "domains", "output", "model", "epochs", "image_size", "batch_size", "seed", "device")
_SWEPT = ("preset", "data", "output", "epochs", "image_size", "seed", "device")
_OUTPUT = Path("runs/crossdomain")


@app.command(
    epilog="Examples: `hemafast crossdomain`, `hemafast crossdomain --preset best --output runs/crossdomain-best`"
)
@configured(TrainConfig, common=_COMPARED, defaults={"preset": "quick", "output": _OUTPUT})
def crossdomain(
    asked: Asked,
    config_file: ConfigFile = None,
    shortcut: Annotated[
        bool, typer.Option(help="Check how well the domain and the image border alone predict the class.")
    ] = True,
    class_map: ClassMap = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train on each domain, on all but one and on all; test on each and on all: what does another laboratory cost?

    Scores are macro-F1 over the classes that both domains have, with intervals, and over all classes. Choose settings
    by the mean over domains left out. Domains that are too small to train on are only tested on. Finished runs are
    reused, interrupted runs resume, and one failure does not stop the rest (exit code 1).

    Writes crossdomain.html, .png, .csv and .json; each run has a folder of its own.
    """
    preset = asked.pop("preset", None) or (None if config_file else "quick")
    settings = train_config(preset, config_file, **{"output": _OUTPUT, **asked})
    refuse_missing_data(settings.data)
    renamed = parse_class_map(class_map)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.cli.tables import crossdomain_results
    from hemafast.experiments.crossdomain import NAME, compare_domains, find_shortcuts

    with resumable():
        shortcuts = find_shortcuts(settings, progress=progress) if shortcut else None
        result = compare_domains(settings, shortcuts, class_map=renamed, progress=progress)
    show_result(result, crossdomain_results, settings.output / f"{NAME}.html", as_json=as_json)


@app.command(epilog="Examples: `hemafast sweep seed-table`, `hemafast sweep seed-table --preset-scale 0.1 --only b0`")
@configured(TrainConfig, common=_SWEPT, defaults={"output": Path("runs/NAME")})
def sweep(
    asked: Asked,
    name: Annotated[str, typer.Argument(help="seed-table: the five experiments of the reference.", metavar="NAME")],
    config_file: ConfigFile = None,
    preset_scale: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="For a small machine: this share of the epochs and about this share of the pixels (sides in steps of "
            "32 px, at least 64). Below 1, every result says that these are not the reference's experiments.",
        ),
    ] = 1.0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="EXPERIMENT", help="Run this one; may be repeated.", show_default="all")
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run published experiments and write their scores beside the published ones.

    --preset, --config and options change every experiment, and every result then says so. Finished runs are reused,
    interrupted runs resume, and one failure does not stop the rest (exit code 1). Writes results.md,
    results_summary.csv, summary_f1.png and a confusion matrix for each experiment.
    """
    refuse_unknown_experiments(name, only or ())
    refuse_missing_data(asked.get("data", TrainConfig.data))
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.cli.tables import plan_table, sweep_results
    from hemafast.experiments.plan import plan_sweep
    from hemafast.experiments.sweep import PAGE, run_sweep

    output = asked.pop("output", None) or Path("runs") / name
    base = asked.pop("preset", None)
    planned = plan_sweep(
        name, output=output, scale=preset_scale, only=only or (), base=base, file=config_file, changes=asked
    )
    if not (quiet or as_json):
        wide_console(stderr=True).print(plan_table(planned))
    with resumable():
        result = run_sweep(planned, progress=progress)
    show_result(result, sweep_results, planned.output / PAGE, as_json=as_json)


@app.command(
    epilog="Examples: `hemafast tune --preset fast --trials 20 --time-budget 2h`, "
    "`hemafast tune --preset fast --space lr=1e-4..1e-2 --space freeze_stages=0,3,5`, "
    "`hemafast tune --preset fast --folds 5 --test`"
)
@configured(
    TrainConfig,
    fields=[name for name in TrainConfig.__dataclass_fields__ if name != "time_budget"],
    common=_COMPARED,
    defaults={"preset": "fast", "output": Path("runs/tune")},
)
def tune(
    asked: Asked,
    config_file: ConfigFile = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")] = 20,
    time_budget: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Stop after this time, as 2h; the same command continues.")
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Score each trial by its mean over so many folds, of data prepared with --folds.",
            show_default="the validation images",
        ),
    ] = None,
    test: Annotated[
        bool,
        typer.Option("--test", help="Once all trials have ended, score the best one on the held-out test images."),
    ] = False,
    space: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUES",
            help="Setting to search: a range as lr=1e-4..1e-2, or choices as policy=basic,robust; may be repeated.",
            show_default=", ".join(DEFAULT),
        ),
    ] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Search for settings by many trainings: Optuna draws each trial, and ends early those that fall behind.

    The best trial is the one with the best macro-F1 on the validation images, or over the folds, so its score is too
    good; that on test images, which no trial has seen, is not. Finished trials are kept, interrupted ones resume, and
    one failure does not stop the rest (exit code 1). Writes tune.html, .csv and .json, and the study as tune.db; each
    run has a folder of its own.
    """
    preset = asked.pop("preset", None) or (None if config_file else "fast")
    settings = train_config(preset, config_file, **{"output": Path("runs/tune"), **asked})
    refuse_missing_data(settings.data)
    searched = parse_space(space) if space else default_space(settings)
    seconds = float("inf") if time_budget is None else seconds_of(time_budget)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.cli.tables import tune_results
    from hemafast.experiments.tune import PAGE
    from hemafast.experiments.tune import tune as search

    with resumable():
        result = search(
            settings, searched, trials=trials, folds=folds, test=test, time_budget=seconds, progress=progress
        )
    show_result(result, tune_results, settings.output / PAGE, as_json=as_json)


@app.command(epilog="Examples: `hemafast audit Source/prepared --count 200`, `hemafast audit runs/NAME`")
def audit(
    data: Annotated[
        Path, typer.Argument(metavar="DATA|RUN", help="Prepared data set, or a run: the data that it was trained on.")
    ] = TrainConfig.data,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Use the features of this run, trained on other data.",
            show_default="a network with ImageNet weights",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Labels to list.", show_default="4 % of them")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the table and the page.")] = Path("audit"),
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """List the labels that are probably wrong, with a page of pictures and a table to correct them in.

    Each label is judged by a regression on all other images, patients and copies apart, from features of a network
    that knows nothing of these labels. Writes suspects.csv and audit.html. Fill in the column label of the
    table where a label is wrong, and give it to `hemafast prepare --labels-fix`. Test images are not looked at.
    """
    if data == Path(LATEST) or is_run(data):
        data = read_config(find_run(data)).data
    refuse_missing_data(data, option="")
    folder = None if run is None else find_run(run)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.data.dataset import open_dataset
    from hemafast.experiments.audit import audit as find_suspects

    with whole_or_nothing():
        found = find_suspects(open_dataset(data), output, run=folder, count=count, device=device, progress=progress)
    if as_json:
        typer.echo(json.dumps(found.to_plain(), indent=2))
        return
    results = wide_console()
    for line in found.lines():
        results.print(line, soft_wrap=True)


def show_result(
    result: dict[str, Any],
    lines_of: Callable[[dict[str, Any]], Iterable[RenderableType]],
    page: Path,
    *,
    as_json: bool,
) -> None:
    """Print a result and its page. Exits with 1 if a run failed."""
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        results = wide_console()
        for line in lines_of(result):
            results.print(line)
        results.print(str(page), soft_wrap=True)
    if result["failures"]:
        raise typer.Exit(1)


@contextmanager
def resumable() -> Iterator[None]:
    """Whatever stops the runs, the same command continues."""
    remedy = "Run the same command to continue."
    try:
        yield
    except StoppedError as error:
        raise StoppedError(error.problem, remedy, exit_code=error.exit_code) from error
    except KeyboardInterrupt as error:  # between two runs, or while one is evaluated
        raise StoppedError("Stopped. Finished runs are kept.", remedy) from error
