"""Patients: differential counts and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hemafast.cli.common import app, refuse_missing_paths
from hemafast.cli.new_images import Taken, takes_images, whole_or_nothing
from hemafast.cli.options import Asked, configured
from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.files import TABLES
from hemafast.run_folder import find_run


@app.command(
    epilog="Examples: `hemafast patients latest slides/ --groups patients.csv`, "
    "`hemafast patients predictions.csv --groups patients.csv --call myeloblast=20`, "
    "`hemafast patients runs/NAME slides/ --patient-labels diagnoses.csv`"
)
@configured(PrepareConfig, fields=("class_map", "columns"))
@takes_images
def patients(
    asked: Asked,
    named: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN [IMAGE...]|TABLE",
            help="Run folder or latest, then images: files, folders, zips, quoted globs; its validation images if none "
            "are named. Or a table of predictions: csv, tsv, xlsx or parquet.",
        ),
    ],
    groups: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Whose the images are: a table of path and patient.",
            show_default="the table itself, or the folders around images",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder to write into.")] = Path("patients"),
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|own",
            help="Labels of cells, to compare the counts with: a table of path and label; or own, for class folders.",
            show_default="none",
        ),
    ] = None,
    cells: Annotated[
        Literal["100", "200"],
        typer.Option(help="Leukocytes of a differential; percentages are whole, or halves for 200."),
    ] = "100",
    apart: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Class that is no leukocyte, and is counted per 100 of these; may be given several times.",
            show_default="erythroblast",
        ),
    ] = None,
    call: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=PERCENT",
            help="Say of each patient whether a class is above this share of leukocytes; may be given several times.",
            show_default="myeloblast=20",
        ),
    ] = None,
    adjust: Annotated[
        bool,
        typer.Option(
            "--adjust", help="Correct percentages for the mistakes that the model makes on validation images."
        ),
    ] = False,
    patient_labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Learn labels of patients from their cells: a table of patient and label.",
            show_default="none",
        ),
    ] = None,
    head: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Label patients with the head.safetensors of --patient-labels.", show_default="none"
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Batch size.")] = 64,
    *,
    taken: Taken,
) -> None:
    """Count the cells of each patient as laboratories do: percent of leukocytes with 95 % intervals, and a page.

    Erythroblasts are counted per 100 leukocytes. What is uncertain about a count is said beside it. With labels of
    patients, an attention head on the features of their cells is trained and scored with patients apart.
    """
    named = _found(named)
    from hemafast.deploy.plan import Options
    from hemafast.patients.count import Counting
    from hemafast.patients.written import Diagnosis, count_to
    from hemafast.report.embedding import Named
    from hemafast.taxonomy import COUNTED_APART

    options = Options(
        um_per_pixel=taken.um_per_pixel, bit_depth=taken.bit_depth, batch_size=batch_size, device=taken.device
    )
    counting = Counting(apart=apart or COUNTED_APART, convention=int(cells), limits=_limits(call or ()), adjust=adjust)
    with whole_or_nothing():
        done = count_to(
            output,
            named,
            Named(labels=labels, groups=groups, **asked),
            options,
            counting=counting,
            diagnosis=Diagnosis(labels=patient_labels, head=head),
            progress=taken.progress,
        )
    taken.tell(done.to_plain(), done.lines())
    if any(one["unreadable"] for one in done.result["patients"]):
        raise typer.Exit(1)


def _found(named: list[str]) -> list[str]:
    """What the user names, with the folder of the latest run. Raises HemafastError if it does not exist."""
    if Path(named[0]).suffix.lower() in TABLES and len(named) > 1:
        problem = f"{named[0]} is a table, and {named[1]} is named behind it."
        raise HemafastError(problem, "Name one table, or a run and then images.")
    if not Path(named[0]).is_file():
        named = [str(find_run(named[0])), *named[1:]]
    refuse_missing_paths(named)
    return named


def _limits(given: list[str] | tuple[()]) -> dict[str, float]:
    """Percent by class. Raises HemafastError if one is no CLASS=PERCENT."""
    limits = {}
    for text in given:
        name, _, percent = text.rpartition("=")
        try:
            limits[name] = float(percent)
        except ValueError:
            name = ""
        if not name:
            raise HemafastError(f"--call {text!r} is not CLASS=PERCENT.", "Write it as myeloblast=20.")
    return limits
