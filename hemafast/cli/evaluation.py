"""What a run is worth: evaluate, report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hemafast.cli.common import ClassMap, Device, Json, Quiet, Verbose, app, listen, refuse_missing_data, wide_console
from hemafast.collector import resting
from hemafast.config import Device as DeviceName
from hemafast.config import ScoredSplit, TrainConfig, parse_class_map
from hemafast.progress import Progress, stage
from hemafast.run_folder import find_run, read_config

if TYPE_CHECKING:
    from hemafast.evaluate.evaluate import Metrics

Run = Annotated[str, typer.Argument(metavar="RUN", help="Run folder, latest, or the file of a model.")]


@app.command(
    epilog="Examples: `hemafast evaluate runs/NAME`, `hemafast evaluate latest --split test`, "
    "`hemafast evaluate latest --data Other/prepared`"
)
def evaluate(
    run: Run,
    data: Annotated[
        Path | None, typer.Option(help="Prepared data set to score on.", show_default="the run's own")
    ] = None,
    split: Annotated[
        ScoredSplit,
        typer.Option(help="Score validation images, test images that training never saw, or all images of other data."),
    ] = "val",
    class_map: ClassMap = None,
    device: Device = "auto",
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Score a run's best model on the validation images, by domain and pooled.

    Half of the images calibrate: temperature, thresholds and likeness are fitted on them, and reported on the other
    half. Writes metrics.json, predictions.csv, confusion_matrix.png, calibration.json, likeness.safetensors and
    report.html into the run folder. Scores on test images, on other data or with a class map go into a folder of their
    own below it, and nothing is fitted on these. Each look at test images is counted beside the data set; from the
    second one on, a warning says how many there were.

    Other data may have other classes. Those of equal names are compared; images of a class that the model lacks are
    left out; answers of a class that the data lacks are mistakes.

    RUN may be the one file of a model, such as best_model.safetensors of an ensemble that somebody sent. It gets a run
    folder under runs/, for which the data set of --data counts as its own if the model was trained on it.
    """
    folder = find_run(run)
    if data is not None:
        refuse_missing_data(data)
    if folder.is_file():
        from hemafast.deploy.lone import run_of_file

        folder = run_of_file(folder, data or TrainConfig.data)
    read_config(folder)
    renamed = parse_class_map(class_map)
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    print_evaluation(folder, data, split, device, as_json=as_json, class_map=renamed, progress=progress)


def print_evaluation(
    folder: Path,
    data: Path | None,
    split: ScoredSplit,
    device: DeviceName,
    *,
    as_json: bool,
    class_map: Mapping[str, str] | Path | None = None,
    progress: Progress,
) -> None:
    """Evaluate a run, write its report, and print what both say."""
    metrics, scores, report = evaluated(folder, data, split, device, class_map, progress=progress)
    from hemafast.cli.tables import score_table, training_lines
    from hemafast.evaluate.elsewhere import home_and_elsewhere

    if as_json:
        said = {"run": str(folder), "scores": str(scores), "report": str(report), "told": home_and_elsewhere(folder)}
        typer.echo(json.dumps(said | metrics, indent=2))
        return
    results = wide_console()
    results.print(score_table(metrics))
    for line in training_lines(metrics):
        results.print(line)
    results.print(f"macro-F1 {home_and_elsewhere(folder)}")
    where = "run folder" if scores == folder else "scores    "
    results.print(f"{where}  {scores}\nreport      {report}", soft_wrap=True)


def evaluated(
    folder: Path,
    data: Path | None,
    split: ScoredSplit,
    device: DeviceName,
    class_map: Mapping[str, str] | Path | None = None,
    *,
    progress: Progress,
) -> tuple[Metrics, Path, Path]:
    """Evaluate a run and write its report: the scores, their folder, and the page."""
    with resting():
        from hemafast.evaluate.evaluate import evaluate_run, scores_folder
        from hemafast.report.page import write_report

    metrics = evaluate_run(folder, data=data, split=split, class_map=class_map, device=device, progress=progress)
    scores = scores_folder(folder, metrics)
    with stage(progress, "writing the page"):
        return metrics, scores, write_report(scores)


@app.command(
    epilog="Examples: `hemafast report latest`, `hemafast report runs/A runs/B --output runs/compared.html`, "
    "`hemafast report runs/NAME --explain`"
)
def report(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Run folders, or latest; several are compared.")],
    output: Annotated[
        Path | None, typer.Option(help="Page to write; needed for several runs.", show_default="report.html in the run")
    ] = None,
    thumbnails: Annotated[int, typer.Option(min=0, max=5000, help="Most cells to show as pictures.")] = 600,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show by Grad-CAM what the most confident mistakes were based on.")
    ] = False,
    as_json: Json = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    """Write one page about evaluated runs: scores, confusion, mistakes, calibration, curves, settings.

    The page needs no other file and no network. Several runs are compared on the same images, with paired intervals.
    """
    folders = [find_run(run) for run in runs]
    progress = listen(verbose=verbose, quiet=quiet or as_json)
    from hemafast.report.page import write_report

    with stage(progress, "writing the page"):
        page = write_report(folders, output, thumbnails=thumbnails, explain=explain)
    if as_json:
        typer.echo(json.dumps({"report": str(page), "bytes": page.stat().st_size}))
    else:
        wide_console().print(str(page), soft_wrap=True)
