"""Names from outside are shown as they are: brackets are no markup, and no terminal obeys them."""

import io
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from command import hemafast
from rich.text import Text

from hemafast.cli.common import listen, wide_console
from hemafast.cli.live import LiveProgress
from hemafast.cli.tables import doctor_table, plan_tree, quarantine_table, score_table, training_lines
from hemafast.doctor.finding import Finding, Verdict
from hemafast.engine.journal import _LogFile
from hemafast.preparation.schema import QuarantinedImage
from hemafast.printable import PrintableFormatter, printable, printable_lines
from hemafast.run_folder import METRICS, read_metrics

MARKUP = "[red]x[/red] [bold]y"
COMMANDS = "\x1b]0;owned\x07\x1b[2J\x9b31m\r\u202efdp\u2028z"
SHOWN = r"\x1b]0;owned\x07\x1b[2J\x9b31m\x0d\u202efdp\u2028z"
STYLE = re.compile(r"\x1b\[[0-9;]*m")  # rich's own
NAME = f"{MARKUP} {COMMANDS}"


def obeyed(text: str) -> list[str]:
    """What a terminal would obey, and line breaks that are none of ours."""
    return [letter for letter in text if letter in "\x1b\x07\x9b\r\u202e\u2028"]


def test_what_is_printable_stays_and_all_else_is_written_out() -> None:
    assert printable("血 é[b] ق 👩‍🔬 \\x") == "血 é[b] ق 👩‍🔬 \\x"
    assert printable(f"a\n\tb{NAME}") == rf"a\x0a\x09b{MARKUP} {SHOWN}"
    assert printable_lines(f"a\n\tb{COMMANDS}") == f"a\n\tb{SHOWN}"


@pytest.fixture
def evil(scored: Path, tmp_path: Path) -> Path:
    """A run in a folder with brackets, whose files name everything as no one would."""
    run = Path(shutil.copytree(scored, tmp_path / "[red]runs[bold]" / "20260101_000000_[link=x]a"))
    metrics = read_metrics(run)
    metrics["domains"] = {f"{name} {NAME}": scores for name, scores in metrics["domains"].items()}
    metrics["warnings"] = [NAME]
    metrics["model"] |= {"backbone": NAME, "started_from": NAME}
    (run / METRICS).write_text(json.dumps(metrics))
    return run


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_tables_and_lines_show_names_and_obey_none(evil: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    metrics = read_metrics(evil)
    passed = {NAME: {"files": 1, "examples": [NAME]}}
    shown: list[Any] = [
        score_table(metrics),
        training_lines(metrics)[0],
        training_lines(metrics)[-1],
        quarantine_table([QuarantinedImage(NAME, NAME, NAME)]),
        doctor_table([Finding(NAME, Verdict.RED, NAME, NAME)]),
        plan_tree(Path(NAME), {"found": 1, "domains": {}, "passed_over": passed}),
        NAME,
        Text(NAME),
    ]
    monkeypatch.setenv("COLUMNS", "2000")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    for one in shown:
        console = wide_console()
        console.file = out = io.StringIO()
        console.print(one, soft_wrap=True)
        said = STYLE.sub("", out.getvalue())
        assert not obeyed(said)
        assert MARKUP in said
        assert "owned" in said


def test_commands_print_names_with_brackets_as_they_are(evil: Path) -> None:
    done = hemafast("runs", "--output", evil.parent)
    assert "[link=x]a" in " ".join(done.stdout.split())
    done = hemafast("evaluate", evil.parent / "[blink]none")
    assert "[blink]none" in done.stderr
    done = hemafast("report", evil)
    assert not obeyed(done.stdout + done.stderr)
    assert "[red]runs[bold]" in done.stdout


def test_a_strange_argument_is_refused_without_being_repeated(tmp_path: Path) -> None:
    for argument in (f"--{COMMANDS}", COMMANDS):
        done = hemafast("doctor", argument, cwd=tmp_path)
        assert done.returncode == 2
        assert not obeyed(done.stdout + done.stderr)
        assert "control characters" in done.stderr
    assert "[red]x[/red]" in hemafast("doctor", "[red]x[/red]").stderr


def test_images_with_brackets_are_predicted_under_their_names(scored: Path, tmp_path: Path, make_archive: Any) -> None:
    folder = make_archive(tmp_path / "[red]cells[bold]", {"[blink]a": 2}, extra={"[blink]a/[b]bad.png": b"bad"})
    done = hemafast("predict", scored, folder, "--output", tmp_path / "[i]out.csv")
    assert done.returncode in (0, 1), done.stderr
    said = done.stdout + done.stderr
    assert "[i]out.csv" in said
    table = (tmp_path / "[i]out.csv").read_text(encoding="utf-8-sig")
    assert "[red]cells[bold]/[blink]a/[b]bad.png" in table


def test_a_source_with_brackets_is_prepared_under_its_names(tmp_path: Path, make_archive: Any) -> None:
    make_archive(tmp_path / "S" / "[red]lab.zip", {"[bold]x": 6}, extra={"[bold]x/[i]bad.png": b"bad"})
    chosen = ("--classes", "from-data", "--pack-size", 32, "--max-quarantined", 1)
    done = hemafast("prepare", "--source", tmp_path / "S", "--output", tmp_path / "[b]out", *chosen)
    assert done.returncode == 0, done.stderr
    assert "[red]lab" in done.stdout
    assert "[bold]x/[i]bad.png" in done.stdout


def test_a_log_has_a_line_for_each_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("hemafast.outside")
    monkeypatch.setattr(logger, "propagate", False)  # pytest's own log cannot send such names to another process
    handler = _LogFile(tmp_path / "train.log", encoding="utf-8", errors="backslashreplace")
    handler.setFormatter(PrintableFormatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    try:
        try:
            raise ValueError(NAME)
        except ValueError:
            logger.warning("%s\nINFO forged \udce9", NAME, exc_info=True)
    finally:
        logger.removeHandler(handler)
        handler.close()
    first, *traceback = (tmp_path / "train.log").read_text().splitlines()
    assert first == rf"WARNING {MARKUP} {SHOWN}\x0aINFO forged \udce9"
    assert traceback[-1] == rf"ValueError: {MARKUP} {SHOWN}"


def test_the_log_on_the_terminal_and_progress_obey_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "2000")
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    root.handlers[:] = []
    try:
        progress = listen(verbose=False, quiet=False)
        (handler,) = root.handlers
        out = io.StringIO()
        handler.console.file = out  # type: ignore[attr-defined] # of rich
        logging.getLogger("hemafast").warning("%s\nforged", NAME)
        progress.say(NAME)
        assert isinstance(progress, LiveProgress)
    finally:
        root.handlers[:] = before
    said = out.getvalue()
    assert not obeyed(said)
    assert said.count(MARKUP) == 2
    assert r"\x0aforged" in said
