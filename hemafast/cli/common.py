"""What all commands share: the app itself, the options that several have, and how they talk."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from glob import has_magic
from pathlib import Path
from shutil import get_terminal_size
from typing import Annotated, Any

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from hemafast import __version__, config
from hemafast.cli.live import LiveProgress
from hemafast.config import DATA, TrainConfig, option_of
from hemafast.engine.stop import SecondSignal
from hemafast.errors import HemafastError
from hemafast.files import FULL, user_cache
from hemafast.printable import PrintableFormatter, has_commands, printable, printable_lines
from hemafast.waiting import spin_briefly

app = typer.Typer(
    name="hemafast",
    help="Train classifiers of single-cell blood images, fast. Start with `hemafast prepare`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="markdown",
)

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print warnings, errors and results only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Data = Annotated[Path, typer.Option(help="Prepared data set.")]
Device = Annotated[config.Device, typer.Option(help=option_of(TrainConfig, "device").help)]
Amp = Annotated[config.Amp, typer.Option(help="Autocast precision; auto: fp32 on a CPU.")]
ClassMap = Annotated[
    str | None,
    typer.Option(
        metavar="FROM=TO,...|FILE",
        help="Rename classes of model and data, which merges those of one name in the scores: "
        "neutrophil_banded=Neutrophil,neutrophil_segmented=Neutrophil; or a table with the columns from and to. "
        "An empty TO leaves the images of a class out.",
        show_default="none",
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="Settings on top of the preset: a TOML file, or the config.json of a run.",
        rich_help_panel=DATA,
    ),
]

_PIPE_WIDTH, _LEAST_WIDTH = 160, 60
_DATASET = "dataset.json"  # preparation.schema.INFO, whose module imports pydantic


def main() -> None:
    """Run the command line; an error that a user can mend is one line and exit code 2, a signal 128 and its number."""
    _restart_in_utf8()
    _keep_wide()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack the letters of a name
    try:
        _refuse_commands(sys.argv[1:])
        spin_briefly(os.environ)
        os.environ.setdefault("XDG_CACHE_HOME", str(user_cache()))  # without a home, libraries make a folder named ~
        # Else numba, where colorama is installed, resets the colours of any terminal at the end.
        os.environ.setdefault("NUMBA_DISABLE_ERROR_MESSAGE_HIGHLIGHTING", "1")
        app()
    except SecondSignal as error:
        os._exit(error.exit_code)  # at once: what Python would tidy up may take as long as what the user gave up on
    except HemafastError as error:
        logging.getLogger("hemafast").debug("raised here", exc_info=error)
        _exit(str(error), error.exit_code)
    except OSError as error:  # a disk or a permission that nobody foresaw
        logging.getLogger("hemafast").debug("raised here", exc_info=error)
        _exit(f"{error}. {remedy_of(error)}", HemafastError.exit_code)


def remedy_of(error: OSError) -> str:
    """What to do about an error of the operating system."""
    if error.errno in FULL:
        return (
            "Make room on that disk, such as by deleting old runs. If it is the one for temporary files, TMPDIR can "
            "name a folder elsewhere."
        )
    if "temporary director" in str(error):  # of tempfile and of matplotlib
        return "Set TMPDIR to a folder that you may write to."
    if error.errno == errno.EROFS:
        return "Use a folder on a disk that can be written to; a run folder can be copied there."
    if error.errno == errno.ELOOP:
        return "Remove the link, or name another folder."
    return "Check that it is there, and that you may read or write it."


def _exit(message: str, code: int) -> None:
    wide_console(stderr=True).print(f"error: {printable(' '.join(message.splitlines()))}", style="red", soft_wrap=True)
    sys.exit(code)


def _refuse_commands(arguments: Sequence[str]) -> None:
    """Refuse an argument that commands the terminal: messages about unknown options repeat it as it is."""
    for argument in filter(has_commands, arguments):
        raise HemafastError(f"The argument {argument!r} holds control characters.", "Rename what it names.")


def _restart_in_utf8() -> None:
    """Start Python anew if the locale's encoding cannot name all files, as with LC_ALL=C and PYTHONUTF8=0."""
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    shown = getattr(sys.stdout, "encoding", None) or "ascii"  # what the terminal shows stays as it is
    changed = os.environ | {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{shown}:backslashreplace"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], changed)


def _keep_wide() -> None:
    """Write lines of at least _LEAST_WIDTH: a narrower terminal wraps them, while tables would lose their content."""
    width = get_terminal_size().columns  # COLUMNS, unless it is no positive number
    if width < _LEAST_WIDTH or os.environ.get("COLUMNS") == "0":
        os.environ["COLUMNS"] = str(max(width, _LEAST_WIDTH))


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"hemafast {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    offline: Annotated[
        bool,
        typer.Option("--offline", help="Use no network, as with HF_HUB_OFFLINE=1: pretrained weights from here only."),
    ] = False,
) -> None:
    """Options of the command as a whole."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub's library is imported; child processes inherit it


def listen(*, verbose: bool, quiet: bool) -> LiveProgress:
    """Send the log to standard error, and return the progress that is shown there."""
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    console = wide_console(stderr=True, quiet=quiet)
    level = logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO
    handler = RichHandler(
        console=wide_console(stderr=True) if quiet else console,
        show_path=verbose,
        show_time=verbose,
        rich_tracebacks=True,
        highlighter=NullHighlighter(),
        keywords=[],
    )
    handler.setFormatter(PrintableFormatter("%(message)s"))
    handler.setLevel(level)  # on the handler: train.log hears everything however quiet the terminal is
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("hemafast").setLevel(logging.DEBUG)
    return LiveProgress(console)


def refuse_missing_data(folder: Path, option: str = "--data ") -> None:
    """Raise HemafastError at once if `folder` is not a prepared data set, before anything heavy is imported.

    `option` stands before it on the command line.
    """
    if (folder / _DATASET).exists():
        return
    near = {found.parent.name: found.parent for found in folder.parent.glob(f"*/{_DATASET}")}
    near |= {str(found.parent): found.parent for found in Path().glob(f"*/*/{_DATASET}")}
    close = [near[name] for text in (folder.name, str(folder)) for name in get_close_matches(text, near, n=1)]
    made = f"Make one with `hemafast prepare`, or name one{f' with {option}'.rstrip() if option else ''}."
    hint = f"Did you mean {option}{close[0]}?" if close else made
    raise HemafastError(f"{folder.absolute()} is not a prepared data set.", hint)


def refuse_missing_paths(names: Sequence[str]) -> None:
    """Raise HemafastError at once for a path that does not exist, before anything heavy is imported."""
    for name in names:
        if not Path(name).exists() and not has_magic(name):
            raise HemafastError(f"There is no {name}.", "Name files, folders, archives, or a quoted glob.")


class _SafeConsole(Console):
    """Prints names from outside as they are: brackets are no markup, and control characters are escaped."""

    def render_str(self, text: str, **options: Any) -> Text:
        """A string as text."""
        return super().render_str(printable_lines(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The parts of something, of which only rich's own are commands to the terminal."""
        for part in super().render(renderable, options):
            yield part if part.control else part._replace(text=printable_lines(part.text))


def wide_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """A console as wide as the terminal; a pipe or a file gets lines unbroken. Text is never read as markup."""
    plain = partial(_SafeConsole, stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False)
    console = plain()
    return console if console.is_terminal else plain(width=_PIPE_WIDTH)
