"""Errors whose remedy is followed until the command succeeds: outputs, temporary folders, homes, classes."""

import errno
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import hemafast as hf
from hemafast.cli import app
from hemafast.cli.common import remedy_of
from hemafast.errors import HemafastError
from hemafast.files import make_folder, user_cache

SPACE = ("unshare", "--user", "--map-root-user", "--mount")
TINY = ("--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--epochs", "1", "--device", "cpu")
NOBODY = """
import json, pwd, sys
def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
from hemafast.cli import main
for command in json.loads(sys.argv.pop()):
    sys.argv[1:] = command
    try:
        main()
    except SystemExit as end:
        if end.code: raise
"""
"""A program that runs commands, given as JSON, for a user whom the system does not know."""


def run(*arguments, python=("-m", "hemafast"), before="", cwd=None, **variables):
    """The command in a process of its own, after the shell commands `before` in a space of mounts of its own."""
    command = [sys.executable, *python, *map(str, arguments)]
    if before:
        command = [*SPACE, "sh", "-ec", f'{before}\nexec "$@"', "sh", *command]
    environment = {name: value for name, value in os.environ.items() if variables.get(name, "") is not None}
    environment |= {"PYTHONPATH": str(Path(hf.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    environment |= {name: str(value) for name, value in variables.items() if value is not None}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=120, check=False)


@pytest.fixture(scope="session")
def mounts() -> None:
    """Skips the test where the system lets nobody mount anything."""
    probe = [*SPACE, "mount", "-t", "tmpfs", "none", "/mnt"]
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this system does not allow mounts to users")


@pytest.fixture
def source(tmp_path, make_archive) -> Path:
    make_archive(tmp_path / "source" / "A.zip", {"basophil": 6, "monocyte": 6})
    return tmp_path / "source"


def prepare(source: Path, *more: str):
    return CliRunner().invoke(app, ["prepare", "--source", str(source), "--pack-size", "64", "--quiet", *more])


# Outputs of prepare


@pytest.mark.parametrize("name", ["volume", "source/prepared"], ids=["elsewhere", "the default output"])
def test_a_mount_point_as_output_is_answered_with_a_folder_inside_it(source, monkeypatch, name):
    volume = source.parent / name
    volume.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == volume)
    refused = prepare(source, "--output", str(volume))
    assert isinstance(refused.exception, HemafastError)
    inside = re.search("--output (.+)$", refused.exception.remedy)[1]
    for _ in range(2):  # the second time, the data set is there
        assert prepare(source, "--output", inside).exit_code == 0
    assert prepare(source, "--output", str(source.parent / "other")).exit_code == 0  # the volume is no archive
    assert len(hf.open_dataset(inside).domains) == 1


def test_a_source_on_a_volume_takes_the_default_output(mounts, source):
    volume = source.parent / "volume"
    volume.mkdir()
    mounted = f"mount -t tmpfs none {volume}; cp {source}/A.zip {volume}"
    done = run("prepare", "--source", volume, "--pack-size", "64", "--json", before=mounted)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folder"] == str(volume / "prepared")


def test_an_output_that_is_empty_is_used_and_one_of_another_kind_is_refused(source):
    empty, file = source.parent / "empty", source.parent / "file"
    empty.mkdir()
    file.write_text("mine")
    assert prepare(source, "--output", str(empty)).exit_code == 0
    for output in (file, file / "below"):
        refused = prepare(source, "--output", str(output))
        assert isinstance(refused.exception, HemafastError)
        assert "another --output" in refused.exception.remedy
    assert file.read_text() == "mine"


def test_a_source_that_is_read_only_is_prepared_into_another_output(mounts, source):
    frozen = f"mount --bind {source} {source}; mount -o remount,bind,ro {source}"
    refused = run("prepare", "--source", source, "--pack-size", "64", before=frozen)
    assert refused.returncode == 2
    assert "Read-only" in refused.stderr
    assert "name another --output" in " ".join(refused.stderr.split())
    asked = ("prepare", "--source", source, "--pack-size", "64", "--output", source.parent / "out")
    assert run(*asked, before=frozen).returncode == 0


# Outputs of the other commands


def test_a_folder_for_an_output_is_made_or_refused_before_the_work(tmp_path, monkeypatch):
    make_folder(tmp_path / "new" / "folder")
    make_folder(tmp_path / "new" / "folder")
    (tmp_path / "file").touch()
    with pytest.raises(HemafastError, match=r"file.* cannot be written.*another --output"):
        make_folder(tmp_path / "file")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(HemafastError, match=r"new cannot be written.*Permission denied"):
        make_folder(tmp_path / "new")


@pytest.mark.parametrize(
    "command",
    [
        ("eda", "--data", "DATA", "--output", "OUT"),
        ("augment-preview", "--data", "DATA", "--policy", "none", "--cells", "1", "--output", "OUT/p.png"),
        ("lr-find", "--data", "DATA", "--steps", "10", "--last", "1e-3", *TINY[:6], "--output", "OUT"),
        ("predict", "RUN", "CELLS", "--output", "OUT/p.csv"),
        ("explain", "RUN", "CELLS", "--output", "OUT"),
        ("export", "RUN", "--format", "safetensors", "--output", "OUT"),
        ("report", "RUN", "--output", "OUT/report.html"),
    ],
    ids=lambda command: command[0],
)
def test_an_output_that_cannot_be_is_answered_with_another_which_may_exist_and_be_empty(
    prepared, scored, tmp_path, command
):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    cells = prepared.folder / prepared.files.manifest["path"][0]

    def outcome(output: Path):
        places = {"DATA": prepared.folder, "RUN": scored, "CELLS": cells}
        words = [str(places.get(word, word)).replace("OUT", str(output)) for word in command]
        return CliRunner().invoke(app, [*words, "--quiet"])

    refused = outcome(tmp_path / "file")
    assert isinstance(refused.exception, HemafastError), refused.exception
    assert re.search("another .*--output", refused.exception.remedy)
    assert outcome(tmp_path / "empty").exit_code == 0
    assert any((tmp_path / "empty").iterdir())


# Temporary folders and homes


def test_without_a_temporary_folder_the_remedy_is_one(mounts, scored, tmp_path):
    nowhere = f"cd /; mount --bind {tmp_path} /mnt; mount -o remount,ro,bind /; mount -o remount,ro,bind /tmp || true"
    if run("import tempfile; tempfile.gettempdir()", python=("-c",), before=nowhere, TMPDIR=None).returncode == 0:
        pytest.skip("a temporary folder stays writable here")
    asked = ("report", scored, "--output", "/mnt/report.html")
    refused = run(*asked, before=nowhere, TMPDIR=None)
    assert refused.returncode == 2
    assert "Set TMPDIR to a folder" in refused.stderr
    done = run(*asked, before=nowhere, TMPDIR="/mnt")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x"), "TMPDIR"),
        (FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']"), "Set TMPDIR"),
        (OSError("Matplotlib needs a cache, and a temporary directory could not be created"), "Set TMPDIR"),
        (OSError(errno.EROFS, "Read-only file system", "/runs/x"), "can be written to"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "you may read or write it"),
    ],
)
def test_an_error_of_the_system_gets_the_remedy_of_its_kind(error, remedy):
    assert remedy in remedy_of(error)


@pytest.mark.nightly
def test_a_user_id_without_a_name_or_a_home_prepares_trains_predicts_and_reports(source, tmp_path):
    commands = [
        ("prepare", "--source", source, "--pack-size", "64"),
        ("train", "--data", source / "prepared", *TINY, "--batch-size", "4", "--quiet"),
        ("predict", "latest", source / "A.zip", "--output", "predicted.csv"),
        ("doctor", "--offline", "--source", source, "--json"),
    ]
    asked = json.dumps([[str(word) for word in command] for command in commands])
    lost = dict.fromkeys(("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME"))
    done = run(asked, python=("-c", NOBODY), cwd=tmp_path, TMPDIR=tmp_path, **lost)
    assert done.returncode == 0, done.stderr
    assert "Could not determine" not in done.stdout + done.stderr
    assert (tmp_path / "predicted.csv").is_file()
    assert len(list(tmp_path.glob("runs/2*/report.html"))) == 1
    assert (tmp_path / f"cache-{os.getuid()}").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "~").exists()


def test_a_cache_that_another_user_made_is_not_used(tmp_path, monkeypatch):
    def homeless(*_):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert user_cache() == tmp_path / f"cache-{os.getuid()}"
    real = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: real + 1)  # the folder of the next user is made by this one
    assert user_cache().name != f"cache-{real + 1}"


# Classes without a training image


@pytest.mark.parametrize(
    "asked",
    [{"loss": "weighted"}, {"loss": "focal"}, {"loss": "logit-adjusted"}, {"sampler": "balanced"}],
    ids=lambda asked: "-".join(asked.values()),
)
def test_a_class_without_a_training_image_trains_with_one_warning(tmp_path, make_archive, caplog, asked):
    make_archive(tmp_path / "A", {"basophil": 4, "monocyte": 4, "eosinophil": 2})
    make_archive(tmp_path / "B", {"basophil": 4}, seed=1)
    names = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.glob("*/*/*.png"))
    sides = ["val" if "eosinophil" in name or name.endswith("0.png") else "train" for name in names]
    table = tmp_path / "split.csv"
    table.write_text("\n".join(["path,split", *map(",".join, zip(names, sides, strict=True))]))
    data = hf.prepare(tmp_path, tmp_path / "prepared", split_file=(table,), pack_sizes=(64,)).folder
    tiny = {"model": "test_resnet", "pretrained": "no", "image_size": 32, "epochs": 1, "batch_size": 4, "device": "cpu"}
    with caplog.at_level(logging.WARNING, "hemafast"):
        run = hf.train(data, output=tmp_path / "runs", amp="off", compile="off", threads=1, track=(), **tiny, **asked)
    (warning,) = [record.message for record in caplog.records if "no training image" in record.message]
    assert "eosinophil of A (2 for validation, 0 quarantined)" in warning
    assert run.metrics["pooled"]["images"] == sides.count("val")
    assert (run.folder / "report.html").is_file()
