"""Another laboratory: adapt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from hemafast.cli.common import app, refuse_missing_paths
from hemafast.cli.new_images import Taken, takes_images, whole_or_nothing
from hemafast.cli.options import Asked, configured
from hemafast.config import PrepareConfig, TrainConfig
from hemafast.errors import HemafastError
from hemafast.run_folder import find_run

_TO_LABEL = Path("to-label")


@app.command(
    epilog="Examples: `hemafast adapt latest cells/`, `hemafast adapt runs/NAME cells/ --suggest 50`, "
    "`hemafast adapt runs/NAME cells/ --labels labels.csv`, `hemafast adapt runs/NAME Other/prepared --labels own`"
)
@configured(PrepareConfig, fields=("class_map", "columns", "groups"))
@takes_images
def adapt(
    asked: Asked,
    run: Annotated[str, typer.Argument(metavar="RUN", help="Run folder, or latest.")],
    data: Annotated[
        list[str],
        typer.Argument(
            metavar="NEWDATA...",
            help="Images of another laboratory: files, folders, zips, quoted globs; or a prepared data set.",
        ),
    ],
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|own",
            help="Labels of some of the images: a table of path and label; or own, for class folders and for the "
            "training images of a prepared data set.",
            show_default="none",
        ),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,...",
            help="The classes that this laboratory tells apart: no other can be an answer of the adapted model.",
            show_default="all of the model",
        ),
    ] = None,
    suggest: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=2000, help="Adapt nothing: choose N cells to label, and copy them."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder in which the run folder is made; of --suggest, that of the copies.",
            show_default=f"{TrainConfig.output}, or {_TO_LABEL}",
        ),
    ] = None,
    *,
    taken: Taken,
) -> None:
    """Adapt a run's best model to the images of another laboratory, without labels or with a few.

    Without labels, the white point is matched and answers are sharpened, unless the images are like those of the
    training set. With labels, a new last layer is added to the old one, and cross-validation scores the model before
    and after; if nothing is better, its weights are kept. The result is a run of its own with a page, adaptation.html;
    the run it came from stays as it was.
    """
    folder = find_run(run)
    refuse_missing_paths(data)
    if suggest is not None and (labels or asked):
        problem = f"--suggest {suggest} chooses cells to label, and takes no labels."
        raise HemafastError(problem, "Leave out one of them.")
    from hemafast.transfer.adapt import Adaptation, adapt_run
    from hemafast.transfer.cells import Asked as OfImages
    from hemafast.transfer.suggest import Suggested
    from hemafast.transfer.suggest import suggest as suggest_cells

    class_map = asked.pop("class_map", None)
    told = OfImages(
        labels=labels,
        um_per_pixel=taken.um_per_pixel,
        bit_depth=taken.bit_depth,
        classes=None if classes is None else classes.split(","),
        **asked,
    )
    named = data[0] if len(data) == 1 else data
    how: dict[str, Any] = {"device": taken.device, "progress": taken.progress}
    done: Adaptation | Suggested
    with whole_or_nothing():
        if suggest is None:
            done = adapt_run(folder, named, told, class_map=class_map, output=output or TrainConfig.output, **how)
        else:
            done = suggest_cells(folder, named, output or _TO_LABEL, told, count=suggest, **how)
    taken.tell(done.to_plain(), done.lines())
