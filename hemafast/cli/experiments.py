"""Questions that take several runs to answer: crossdomain, sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType

from hemafast import config
from hemafast.cli.common import (
    TRAIN_DEFAULTS,
    ConsoleProgress,
    Data,
    Json,
    Quiet,
    Verbose,
    app,
    console_of,
    wide_console,
)
from hemafast.errors import StoppedError

_PRESET = "quick"


@app.command(
    epilog="Examples: `hemafast crossdomain`, `hemafast crossdomain --preset best --output runs/crossdomain-best`"
)
def crossdomain(
    preset: Annotated[
        str | None, typer.Option(help="Settings to start from.", show_default=_PRESET, metavar="NAME")
    ] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="Settings file on top of the preset: TOML, or a run's config.json.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Prepared data set.", show_default=str(TRAIN_DEFAULTS.data))] = None,
    domain: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Domain to compare; may be repeated.", show_default="all"),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the runs and the results.")] = Path("runs/crossdomain"),
    model: Annotated[str | None, typer.Option(help="Any timm image model.", show_default="the preset's")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images.", show_default="the preset's")] = None,
    image_size: Annotated[
        int | None, typer.Option(help="Side in pixels of what the network sees.", show_default="the preset's")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Images at once.", metavar="N|auto", show_default="the preset's")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of each run.", show_default=str(TRAIN_DEFAULTS.seed))] = None,
    device: Annotated[config.Device | None, typer.Option(help="Where models run.", show_default="auto")] = None,
    shortcut: Annotated[
        bool, typer.Option(help="Check what can be guessed from the domain and the border of the images alone.")
    ] = True,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Train on each domain and on all, test on each and on all: what does another laboratory cost?

    Scores are macro-F1 over the classes that both domains have, with intervals, and over all. The same command goes on
    after a stop, and finds what is finished. Exit code 1 if a run failed; the others are run all the same.

    Writes crossdomain.html, .png, .csv and .json; each run has a folder of its own.
    """
    from hemafast.cli.tables import crossdomain_results
    from hemafast.experiments.crossdomain import NAME, compare_domains, find_shortcuts

    progress = ConsoleProgress(console_of(verbose=verbose, quiet=quiet or as_json))
    asked = {
        "data": data,
        "domains": tuple(domain) if domain else None,
        "output": output,
        "model": model,
        "epochs": epochs,
        "image_size": image_size,
        "batch_size": batch_size,
        "seed": seed,
        "device": device,
    }
    settings = config.train_config(preset or (None if config_file else _PRESET), config_file, **asked)
    with _resumable():
        shortcuts = find_shortcuts(settings, progress=progress) if shortcut else None
        result = compare_domains(settings, shortcuts, progress=progress)
    _show(result, crossdomain_results, settings.output / f"{NAME}.html", as_json=as_json)


@app.command(epilog="Examples: `hemafast sweep seed-table`, `hemafast sweep seed-table --preset-scale 0.1 --only b0`")
def sweep(
    name: Annotated[str, typer.Argument(help="seed-table: the five experiments of the reference.", metavar="NAME")],
    data: Data = TRAIN_DEFAULTS.data,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the runs and the results.", show_default="runs/NAME")
    ] = None,
    preset_scale: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="Shrink for a small machine: this share of the epochs and about this share of the pixels (sides in "
            "steps of 32 px, at least 64). Below 1 they are not the reference's experiments, and every result says so.",
        ),
    ] = 1.0,
    only: Annotated[
        list[str] | None, typer.Option(metavar="EXPERIMENT", help="Run this one; may be repeated.", show_default="all")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of each run.", show_default=str(TRAIN_DEFAULTS.seed))] = None,
    device: Annotated[config.Device | None, typer.Option(help="Where models run.", show_default="auto")] = None,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Run experiments that were published, and write their scores beside the published ones.

    The same command goes on after a stop, and finds what is finished. Exit code 1 if a run failed; the others are run
    all the same. Writes results.md, results_summary.csv, summary_f1.png and a confusion matrix of each.
    """
    from hemafast.cli.tables import plan_table, sweep_results
    from hemafast.experiments.plan import plan_sweep
    from hemafast.experiments.sweep import PAGE, run_sweep

    console = console_of(verbose=verbose, quiet=quiet or as_json)
    planned = plan_sweep(
        name,
        data=data,
        output=output or Path("runs") / name,
        scale=preset_scale,
        only=only or (),
        seed=seed,
        device=device,
    )
    console.print(plan_table(planned))
    with _resumable():
        result = run_sweep(planned, progress=ConsoleProgress(console))
    _show(result, sweep_results, planned.output / PAGE, as_json=as_json)


def _show(
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
        results.print(str(page), highlight=False, markup=False, soft_wrap=True)
    if result["failures"]:
        raise typer.Exit(1)


@contextmanager
def _resumable() -> Iterator[None]:
    """An interrupted command tells how to resume."""
    remedy = "Run the same command again to resume."
    try:
        yield
    except StoppedError as error:
        raise StoppedError(error.problem, remedy, exit_code=error.exit_code) from error
    except KeyboardInterrupt as error:  # between two runs, or while one is evaluated
        raise StoppedError("Stopped. Finished runs are kept.", remedy) from error
