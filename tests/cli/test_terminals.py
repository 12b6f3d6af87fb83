"""Any terminal shows what the commands say: brackets as they are, other letters escaped where it has none."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from command import hemafast

from hemafast.cli.common import listen, wide_console
from hemafast.cli.tables import quarantine_table, training_lines
from hemafast.preparation.schema import QuarantinedImage
from hemafast.preparation.tables.read import read_table

UTF8 = {"PYTHONIOENCODING": "utf-8"}
POOR = {
    "ASCII output": {"PYTHONIOENCODING": "ascii"},
    "Latin-1 output": {"PYTHONIOENCODING": "latin-1"},
    "C locale": {"LC_ALL": "C"},
    "C locale, strictly": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}
NAME = "血 é[b]"


def command(*arguments, cwd, env):
    """The command in a process of its own, with bytes as output."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONUTF8"))}
    line = [sys.executable, "-m", "hemafast", *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env=plain | env, capture_output=True, check=False)


@pytest.fixture(scope="module")
def source(tmp_path_factory, make_archive):
    """A zip and a folder whose names are no ASCII, with an image that is none."""
    source = tmp_path_factory.mktemp("source")
    make_archive(source / f"{NAME}.zip", {"bäsophil [x]": 6}, extra={f"bäsophil [x]/{NAME}.png": b"bad"})
    make_archive(source / "Ünder", {"bäsophil [x]": 5}, seed=1)
    return source


@pytest.mark.parametrize("kind", ["Latin-1 output", "C locale, strictly"])
def test_names_outside_ascii_are_prepared_and_shown_on_any_terminal(source, tmp_path, kind):
    output = tmp_path / "préparé"
    arguments = ("prepare", "--source", source, "--output", output, "--classes", "from-data", "--pack-size", 32)
    done = command(*arguments, "--max-quarantined", 1, cwd=tmp_path, env=POOR[kind])
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    name = b"\\u8840 \xe9[b]" if kind == "Latin-1 output" else rb"\u8840 \xe9[b]"
    assert name in done.stdout
    assert (output / "images" / NAME / "bäsophil [x]").is_dir()
    assert (output / "split.csv").read_bytes().startswith(b"\xef\xbb\xbf")
    assert read_table(output / "quarantine.csv")["file"].tolist() == [f"quarantined/{NAME}/bäsophil [x]/{NAME}.png"]


def test_json_is_ascii_everywhere(source, tmp_path):
    arguments = ("--source", source, "--output", tmp_path / "out", "--classes", "from-data", "--pack-size", 32)
    done = hemafast("prepare", *arguments, "--max-quarantined", 1, "--json")
    assert done.stdout.isascii()
    assert json.loads(done.stdout)["classes"] == ["bäsophil [x]"]


@pytest.mark.parametrize("kind", POOR)
def test_errors_and_help_are_shown_on_any_terminal(tmp_path, kind):
    done = command("verify", tmp_path / NAME, cwd=tmp_path, env=POOR[kind])
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: ")
    assert b"[b]" in done.stderr
    assert command("predict", "--help", cwd=tmp_path, env=POOR[kind]).returncode == 0


def test_a_name_that_is_no_text_is_shown_and_refused(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xe9t\xe9"
    os.mkdir(folder)  # noqa: PTH102
    done = command("verify", os.fsdecode(folder), cwd=tmp_path, env=UTF8)
    assert done.returncode == 2
    assert rb"\udce9t\udce9" in done.stderr


def _on_terminal(arguments, cwd, **env) -> str:
    """What a command writes to a terminal."""
    ours, theirs = pty.openpty()
    line = [sys.executable, "-m", "hemafast", *arguments]
    process = subprocess.Popen(line, cwd=cwd, env=os.environ | env, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    written = b""
    try:
        while part := os.read(ours, 65536):
            written += part
    except OSError:  # the terminal has hung up
        pass
    os.close(ours)
    process.wait()
    return written.decode()


COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3|4|9|10)[0-9]m")


@pytest.mark.parametrize(
    ("env", "controls", "colours"),
    [({"TERM": "xterm-256color"}, True, True), ({"TERM": "dumb"}, False, False), ({"NO_COLOR": "1"}, None, False)],
    ids=["colour", "dumb", "NO_COLOR"],
)
def test_control_sequences_go_to_terminals_that_know_them(tmp_path, make_archive, env, controls, colours):
    make_archive(tmp_path / "Source" / "A.zip", {"basophil": 6}, extra={"basophil/bad.png": b"bad"})
    said = _on_terminal(["verify", "none"], tmp_path, **({"TERM": "xterm"} | env))
    if controls is False:
        said += _on_terminal(["prepare", "--pack-size", "32", "--max-quarantined", "1"], tmp_path, **env)
        assert "not an image" in said
    assert "error: " in said
    assert bool(COLOUR.search(said)) == colours
    assert controls in (None, "\x1b" in said)


@pytest.mark.parametrize("columns", ["0", "1", "12", "-3", "wide"])
def test_no_terminal_is_too_narrow(tmp_path, columns):
    """Numbers in tables and errors are shown whole; a terminal wraps long lines itself."""
    (tmp_path / "Runs").mkdir()
    for arguments, words in (
        (["runs", "--output", "Runs"], "Runs holds no runs"),
        (["runs", "--nothing"], "No such option: --nothing"),
        (["predict", "nothing"], "There is no run nothing"),
    ):
        said = _on_terminal(arguments, tmp_path, COLUMNS=columns, TERM="dumb")
        assert words in said


def test_brackets_are_never_markup(tmp_path):
    out, err = io.StringIO(), io.StringIO()
    name = "[red]a[/] [b] :smile: [/x] [link=file:///x]y"
    with redirect_stdout(out), redirect_stderr(err):
        console = wide_console()
        console.print(f"{name}.png", soft_wrap=True)
        console.print(quarantine_table([QuarantinedImage(name, "empty", name)]))
        for line in training_lines({"model": {"started_from": name}, "training": {"epochs": 0}, "warnings": [name]}):
            console.print(line)
        before = logging.getLogger().handlers[:]
        try:
            progress = listen(verbose=False, quiet=False)
            progress.say(name)
            logging.getLogger("hemafast").warning("%s is strange", name)
        finally:
            logging.getLogger().handlers[:] = before
    assert out.getvalue().count(name) == 5
    assert err.getvalue().count(name) == 2


@pytest.mark.parametrize("name", ["[red]x[/]", "[/nothing]", ":smile:"])
def test_brackets_in_paths_reach_the_user(tmp_path, name):
    assert name in hemafast("verify", name, cwd=tmp_path).stderr
    assert name in hemafast("runs", "--output", name, cwd=tmp_path).stdout
    assert name in hemafast("prepare", "--source", name, cwd=tmp_path).stderr
