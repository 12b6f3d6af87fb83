import json
import os
import re
import select
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from hemafast import config
from hemafast.cli import app

COMMANDS = ("demo", "prepare", "verify", "eda", "augment-preview", "train", "evaluate", "bench")


def hemafast(*arguments, cwd=None, timeout=120):
    command = [sys.executable, "-m", "hemafast", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=timeout, check=False)


def assert_is_one_line_error(result, *words):
    assert result.returncode == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def test_help_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from hemafast.cli import main\n"
        "sys.argv = ['hemafast', '--help']\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "print('LOADED', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = set(said.partition("LOADED")[2].split())
    heavy = {
        "torch",
        "nvidia",
        "timm",
        "pandas",
        "sklearn",
        "matplotlib",
        "numpy",
        "scipy",
        "pydantic",
        "PIL",
        "jinja2",
    }
    assert "typer" in loaded
    assert not heavy & loaded


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command):
    result = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"hemafast {command}" in result.output.split("Example")[1]


def _options_of(command: str) -> set[str]:
    said = CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "250", "TERM": "dumb"}).output
    options = set(re.findall(r"--([a-z][a-z-]+)", said)) - {"json", "verbose", "quiet", "help"}
    return {name for name in options if not name.startswith("no-")}


def test_training_options_are_the_fields_of_the_config():
    fields = {name.replace("_", "-") for name in config.TrainConfig.__dataclass_fields__}
    assert _options_of("train") - {"resume"} == fields


def test_preparing_options_are_the_fields_of_the_config():
    fields = {name.replace("_", "-") for name in config.PrepareConfig.__dataclass_fields__}
    assert _options_of("prepare") - {"workers"} == (fields - {"pack-sizes"}) | {"pack-size"}


def test_the_preview_takes_every_change_to_a_policy_that_training_takes():
    changes = {
        "crop-area",
        "zoom",
        "symmetry",
        "rotation",
        "randaugment-ops",
        "randaugment-magnitude",
        "stain",
        "erase",
    }
    assert changes <= _options_of("augment-preview")
    assert changes <= _options_of("train")


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--sampler", "mixed:2", "sampler"),
        ("--rotation", "-3", "rotation"),
        ("--randaugment-magnitude", "31", "randaugment_magnitude"),
        ("--erase", "1.5", "erase"),
    ],
)
def test_a_policy_out_of_range_is_one_line(tmp_path, option, value, named):
    assert_is_one_line_error(hemafast("train", option, value, cwd=tmp_path), named)


def test_tars_that_are_not_there_are_one_line(tmp_path, prepared):
    done = hemafast(
        "train",
        "--input",
        "webdataset",
        "--model",
        "test_resnet",
        "--pretrained",
        "no",
        "--image-size",
        32,
        "--data",
        prepared.folder,
        "--output",
        tmp_path / "runs",
    )
    assert_is_one_line_error(done, "no WebDataset tars", "--format webdataset")
    assert not (tmp_path / "runs").exists()


def test_help_shows_the_default_of_each_preset():
    said = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "250"}).output
    assert "seed: resnet18, quick: tf_efficientnet_lite0" in said


def test_missing_source_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path / "none"), "none", "--source")


def test_empty_source_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "holds no archive", "hemafast demo")


def test_a_zip_that_is_none_is_one_line_and_nothing_is_written(tmp_path):
    (tmp_path / "Broken.zip").write_bytes(b"this is no zip")
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "Broken.zip", "not a zip")
    assert [path.name for path in tmp_path.iterdir()] == ["Broken.zip"]


def test_no_class_folders_is_one_line(tmp_path):
    (tmp_path / "Flat").mkdir()
    (tmp_path / "Flat" / "BA_1.jpg").write_bytes(b"")
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "Flat", "no class folders")


def test_unknown_class_is_one_line(tmp_path, make_archive):
    make_archive(tmp_path / "Odd", {"plasma_cell": 2})
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "plasma_cell", "--classes from-data")


def test_too_many_damaged_images_are_one_line_and_nothing_is_written(tmp_path, make_archive):
    make_archive(tmp_path / "Cells", {"basophil": 4})
    broken = next((tmp_path / "Cells").rglob("*.*"))
    broken.write_bytes(broken.read_bytes()[:100])
    result = hemafast("prepare", "--source", tmp_path)
    assert_is_one_line_error(result, broken.name, "1 of 4 images", "--max-quarantined")
    assert {path.name for path in tmp_path.iterdir()} == {"Cells", ".prepared.lock"}


def test_the_closing_table_names_what_was_quarantined_and_why(tmp_path, make_archive):
    make_archive(tmp_path / "Cells", {"basophil": 20})
    (tmp_path / "Cells" / "basophil" / "none.png").write_bytes(b"")
    result = hemafast("prepare", "--source", tmp_path)
    assert result.returncode == 0, result.stderr
    line = next(line for line in result.stdout.splitlines() if "none.png" in line)
    assert "quarantined/Cells/basophil/none.png" in line
    assert "empty" in line
    assert "no bytes" in line
    said = json.loads(hemafast("prepare", "--source", tmp_path, "--json").stdout)
    assert (said["fresh"], said["folder"]) == (False, str(tmp_path / "prepared"))
    assert said["quarantine"] == [
        {"file": "quarantined/Cells/basophil/none.png", "verdict": "empty", "reason": "no bytes"}
    ]
    strict = hemafast("prepare", "--source", tmp_path, "--strict")
    assert_is_one_line_error(strict, "none.png", "--strict")


def test_names_and_patterns_in_square_brackets_are_shown_as_they_are(tmp_path, make_archive):
    make_archive(tmp_path / "[bold]Cells[", {"basophil": 20}, extra={"basophil/odd.png": b""})
    result = hemafast("prepare", "--source", tmp_path, "--group-pattern", "^([A-Z]+_[0-9]1)", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "[bold]Cells[" in result.stdout
    assert "note: 10 images are in no group of ^([A-Z]+_[0-9]1)" in result.stdout


@pytest.mark.parametrize("output", ["taken/prepared", "taken"])
def test_an_output_that_cannot_be_made_is_one_line(tmp_path, make_archive, output):
    make_archive(tmp_path / "source" / "Cells", {"basophil": 4})
    (tmp_path / "taken").write_text("mine")
    result = hemafast("prepare", "--source", tmp_path / "source", "--output", tmp_path / output)
    assert_is_one_line_error(result, "taken", "--output" if output == "taken" else "disk")


@pytest.mark.parametrize("text", ["Cells", "=0.1", "Cells=wide", "Cells=0", "Other=0.1"])
def test_a_bad_scale_is_one_line(tmp_path, make_archive, text):
    make_archive(tmp_path / "Cells", {"basophil": 2})
    result = hemafast("prepare", "--source", tmp_path, "--um-per-pixel", text)
    assert_is_one_line_error(result, text.partition("=")[0], "per")


def test_verify_says_what_was_changed(tmp_path, make_archive):
    make_archive(tmp_path / "Cells", {"basophil": 4})
    assert hemafast("prepare", "--source", tmp_path, "--pack-size", "64", "--pack-size", "32").returncode == 0
    sound = hemafast("verify", tmp_path / "prepared")
    assert sound.returncode == 0
    assert "4 images" in sound.stdout
    changed = next((tmp_path / "prepared" / "images").rglob("*.png"))
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    found = hemafast("verify", tmp_path / "prepared", "--json")
    assert found.returncode == 1
    assert [problem["file"] for problem in json.loads(found.stdout)["problems"]] == [
        changed.relative_to(tmp_path / "prepared").as_posix()
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "resnet81"], ["resnet81", "resnet18"]),
        (["--preset", "slow"], ["slow", "quick"]),
        (["--epochs", "0"], ["epochs", "0"]),
        (["--weights", "none.safetensors"], ["none.safetensors"]),
    ],
)
def test_a_bad_training_request_is_one_line_and_leaves_no_run(tmp_path, prepared, arguments, words):
    result = hemafast("train", "--data", prepared.folder, "--output", tmp_path / "runs", *arguments)
    assert_is_one_line_error(result, *words)
    assert not (tmp_path / "runs").exists()


def test_training_without_prepared_data_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("train", "--data", tmp_path), "not a prepared data set", "hemafast prepare")


def test_resuming_what_is_no_run_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("train", "--resume", tmp_path), "is not a run")


def test_resuming_with_other_settings_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("train", "--resume", tmp_path, "--lr", "0.1"), "--lr", "--epochs")


def test_evaluating_what_is_no_run_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("evaluate", tmp_path), "is not a run")


def test_an_unknown_option_exits_with_2():
    assert hemafast("train", "--turbo").returncode == 2


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path, prepared):
    import signal

    train = ("train", "--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--epochs", "500")
    command = [
        sys.executable,
        "-m",
        "hemafast",
        *train,
        "--data",
        str(prepared.folder),
        "--output",
        str(tmp_path / "runs"),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        log = None
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (log and "epoch 1/" in log.read_text(encoding="utf-8")):
            log = next((tmp_path / "runs").glob("*/train.log"), None) if (tmp_path / "runs").exists() else None
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_quiet_training_still_fills_the_log(tmp_path, prepared):
    train = ("train", "--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--epochs", "1", "-q")
    result = hemafast(*train, "--data", prepared.folder, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epoch 1/1" in next(tmp_path.glob("*/train.log")).read_text(encoding="utf-8")
    assert "INFO" not in result.stderr
    assert "macro-F1" in result.stdout


def test_ctrl_c_on_a_terminal_gives_the_terminal_back(tmp_path, prepared):
    import pty
    import termios

    train = ("train", "--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--epochs", "500")
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "hemafast", *train, "--data", str(prepared.folder), "--output", str(tmp_path)]
    # A session of its own, whose terminal this is: ^C typed there is a signal to the process.
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call
    ) as process:
        said = b""
        while b"epoch 2/" not in said:
            said += os.read(ours, 1024)
        os.write(ours, b"\x03")
        said = b""
        while process.poll() is None:
            said += os.read(ours, 1024) if select.select([ours], [], [], 0.2)[0] else b""
    assert process.returncode == 130
    assert termios.tcgetattr(theirs) == before
    said += os.read(ours, 65536) if select.select([ours], [], [], 0.2)[0] else b""
    assert said.count(b"\x1b[?25l") <= said.count(b"\x1b[?25h")  # a cursor that was hidden is shown again
    os.close(ours)
    os.close(theirs)


def _take_terminal():
    """Make the standard input the terminal of this session."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
