"""What `hemafast prepare` prints of strangers' names, on terminals of every kind."""

import json
import os
import subprocess
import sys

import pytest
from command import hemafast
from door import Room

CLASSES = ("[bold]Zellen", "Größe in %", "图像", "Эозинофил")


@pytest.fixture
def room(tmp_path):
    room = Room(tmp_path)
    room.write({**room.classes(*CLASSES), "basophil/leer.jpg": b""}, "[red]Labor")
    return room


def asked(room):
    return (
        "prepare",
        "--source",
        room.source,
        "--output",
        room.output,
        "--classes",
        "from-data",
        "--pack-size",
        32,
        "--max-quarantined",
        1,
    )


@pytest.mark.parametrize("columns", ["30", "80", "300"])
def test_names_that_look_like_markup_are_printed_as_they_are(room, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    done = hemafast(*asked(room), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "[red]" in done.stdout
    assert "[bold]" in done.stdout
    assert not room.output.exists()


def test_json_of_a_dry_run_counts_every_file(room):
    done = hemafast(*asked(room), "--dry-run", "--json")
    said = json.loads(done.stdout)
    assert said["found"] == len(room.written)
    assert said["images"] == len(room.written)
    assert set(said["domains"]["[red]Labor"]["splits"]["split to be drawn"]) == {*CLASSES, "basophil"}


def test_json_of_a_preparation_holds_the_account(room):
    done = hemafast(*asked(room), "--json", "--workers", 1)
    said = json.loads(done.stdout)
    account = said["account"]
    passed = sum(one["files"] for one in account["passed_over"].values())
    counted = account["train"] + account["val"] + account["test"] + sum(account["quarantined"].values()) + passed
    assert counted == account["found"] == len(room.written)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_the_names_stops_nothing(room, encoding):
    environment = os.environ | {"PYTHONIOENCODING": encoding, "LC_ALL": "C", "NO_COLOR": "1", "COLUMNS": "60"}
    command = [sys.executable, "-m", "hemafast", *map(str, asked(room)), "--dry-run"]
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"Labor" in done.stdout


def test_an_error_about_such_names_is_one_line(room):
    done = hemafast(*asked(room)[:5])
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "[bold]Zellen (3 images)" in line
