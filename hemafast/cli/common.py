"""What all commands share: the app itself, the options that several have, and how they talk."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.console import Console

from hemafast import __version__, config
from hemafast.config import TrainConfig
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS
from hemafast.progress import Silent

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

TRAIN_DEFAULTS = TrainConfig()
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
    plain = getattr(TRAIN_DEFAULTS, field)
    presets: dict[Any, list[str]] = {plain: []}
    for name, preset in PRESETS.items():
        presets.setdefault(preset().get(field, plain), []).append(name)
    del presets[plain]
    return "; ".join([_typed(plain, none), *(f"{', '.join(presets[value])}: {value}" for value in presets)])


def _typed(value: Any, none: str) -> str:
    """A value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or none
    return none if value is None else str(value)


def trains(field: str, text: str, name: str | None = None, *, none: str = "off", **more: Any) -> Any:
    """A training option whose default comes from the preset; `none` says what None means."""
    # Not typer's own [default: ...], which takes a line for itself.
    text = f"{text} [{_by_preset(field, none)}]"
    return typer.Option(*([name] if name else []), help=text, show_default=False, **more)


def names_of(kind: Any) -> str:
    """The values of a Literal, `auto` at the end."""
    return ", ".join(sorted(get_args(kind), key=lambda name: name == "auto"))


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


def print_evaluation(folder: Path, data: Path | None, device: config.Device, *, as_json: bool) -> None:
    """Evaluate a run, write its report, and print what both say."""
    from hemafast.cli.tables import score_table, training_lines
    from hemafast.evaluate.evaluate import evaluate_run, scores_folder
    from hemafast.report.page import write_report

    metrics = evaluate_run(folder, data=data, device=device)
    scores = scores_folder(folder, metrics)
    report = write_report(scores)
    if as_json:
        typer.echo(json.dumps({"run": str(folder), "scores": str(scores), "report": str(report), **metrics}, indent=2))
        return
    results = wide_console()
    results.print(score_table(metrics))
    for line in training_lines(metrics):
        results.print(line, highlight=False)
    where = "run folder" if scores == folder else "scores    "
    results.print(f"{where}  {scores}\nreport      {report}", highlight=False, soft_wrap=True)


def console_of(*, verbose: bool, quiet: bool) -> Console:
    """Send the log to standard error, and return a console for progress there."""
    from rich.logging import RichHandler

    console = wide_console(stderr=True, quiet=quiet)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(
        console=wide_console(stderr=True) if quiet else console,
        show_path=verbose,
        show_time=verbose,
        rich_tracebacks=True,
        highlighter=None,
    )
    handler.setLevel(level)  # on the handler: train.log hears everything however quiet the terminal is
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
    logging.getLogger("hemafast").setLevel(logging.DEBUG)
    return console


def wide_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal; a pipe or a file gets lines unbroken."""
    console = Console(stderr=stderr, quiet=quiet)
    return console if console.is_terminal else Console(stderr=stderr, quiet=quiet, width=_PIPE_WIDTH)


@contextmanager
def progress(console: Console, what: str, unit: str = "images") -> Iterator[Callable[[int, int | None], None]]:
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


class ConsoleProgress(Silent):
    """Shows progress as a bar on a console."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._open = ExitStack()
        self._done = 0
        self._total: int | None = None
        self.shows = console.is_terminal and not console.quiet

    def start(self, what: str, total: int | None = None, *, unit: str = "images", done: int = 0, **facts: Any) -> None:
        """Open a bar."""
        self.finish()
        self._done, self._total = done, total
        self._update = self._open.enter_context(progress(self._console, what, unit))

    def advance(self, count: int = 1, **measured: float) -> None:
        """Move the bar."""
        self._done += count
        self._update(self._done, self._total)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def finish(self, **results: Any) -> None:
        """Close the bar."""
        self._open.close()
