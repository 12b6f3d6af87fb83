"""The command line: what each option sets, what is refused in one line, and signals."""

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import get_args

import forked
import pytest
import typer
from command import asked_of_training, hemafast
from typer.testing import CliRunner

from hemafast import config
from hemafast.cli import app
from hemafast.config import TrainConfig, to_json, train_config
from hemafast.presets import PRESETS

COMMANDS = (
    "demo",
    "prepare",
    "verify",
    "eda",
    "augment-preview",
    "train",
    "pretrain",
    "lr-find",
    "runs",
    "evaluate",
    "report",
    "predict",
    "adapt",
    "ensemble",
    "embed",
    "export",
    "push",
    "explain",
    "patients",
    "audit",
    "crossdomain",
    "sweep",
    "tune",
    "bench",
    "doctor",
)
TINY = ("--model", "test_resnet", "--pretrained", "no", "--image-size", "32", "--compile", "off", "--device", "cpu")
ENDLESS = ("train", *TINY, "--epochs", "500")


def assert_is_one_line_error(result, *words, code=2):
    assert result.returncode == code
    # What a machine that is new to the command, or busy with others, adds.
    asides = ("INFO     trying ", "INFO     comparing ", "WARNING  the trial of ")
    lines = [line for line in result.stderr.strip().splitlines() if not line.startswith(asides)]
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


def test_every_command_is_known_to_these_tests():
    assert set(typer.main.get_command(app).commands) == set(COMMANDS)


EVERYWHERE = {"as_json", "verbose", "quiet", "help", "help_all"}
SHORT_FORMS = {"onecycle": "--schedule onecycle", "weighted_loss": "--loss weighted"}


def parameters_of(command):
    """The options of a command by the name of their parameter."""
    parameters = typer.main.get_command(app).commands[command].params
    return {parameter.name: parameter for parameter in parameters if parameter.name not in EVERYWHERE}


def test_every_setting_of_training_has_its_option_and_every_option_its_setting():
    options = parameters_of("train")
    known = TrainConfig.__dataclass_fields__.keys()
    of_a_run = {"config_file", "resume", "allow_changes"}
    of_settings = options.keys() - of_a_run - {"folds", "seeds", "parallel"} - SHORT_FORMS.keys()
    assert of_settings == known - set(config.PRETRAINING)
    for name in of_settings:
        assert options[name].opts[0] == f"--{name.replace('_', '-')}"


def test_pretraining_has_every_setting_but_those_of_labels_and_the_classifier():
    of_settings = parameters_of("pretrain").keys() - {"config_file", "resume", "allow_changes", "onecycle"}
    assert of_settings == TrainConfig.__dataclass_fields__.keys() - set(config.LABELLED)


def test_short_forms_say_what_they_are_short_for():
    for name, meaning in SHORT_FORMS.items():
        assert f"Short for {meaning}" in parameters_of("train")[name].help


def test_preparing_options_are_the_fields_of_the_config():
    assert (
        parameters_of("prepare").keys() - {"workers", "dry_run", "part", "join"}
        == config.PrepareConfig.__dataclass_fields__.keys()
    )


def test_the_preview_takes_every_change_to_a_policy_that_training_takes():
    changes = {
        name for name, option in parameters_of("train").items() if str(option.rich_help_panel).startswith("Changes to")
    }
    assert len(changes) == 15
    assert changes <= parameters_of("augment-preview").keys()


GIVEN = {
    "preset": ("quick", "quick"),
    "data": ("elsewhere", Path("elsewhere")),
    "fold": ("2", 2),
    "output": ("there", Path("there")),
    "seed": ("7", 7),
    "model": ("vit_tiny_patch16_224", "vit_tiny_patch16_224"),
    "pretrained": ("no", "no"),
    "weights": ("w.pth", Path("w.pth")),
    "image_size": ("96", 96),
    "growing_from": ("64,80", (64, 80)),
    "dropout": ("0.2", 0.2),
    "drop_path": ("0.3", 0.3),
    "freeze_norm": ("", True),
    "standardize": ("", True),
    "quarter_turns": ("", True),
    "freeze_stages": ("3", 3),
    "epochs": ("4", 4),
    "time_budget": ("2m", 120.0),
    "batch_size": ("64", 64),
    "accumulate": ("2", 2),
    "lr": ("0.002", 0.002),
    "schedule": ("cosine", "cosine"),
    "warmup": ("0.1", 0.1),
    "weight_decay": ("0.05", 0.05),
    "layer_decay": ("0.75", 0.75),
    "clip_grad": ("1.5", 1.5),
    "ema": ("0.99", 0.99),
    "loss": ("focal", "focal"),
    "focal_gamma": ("3", 3.0),
    "teacher": ("there/taught", Path("there/taught")),
    "teacher_weight": ("0.7", 0.7),
    "logit_tau": ("0.5", 0.5),
    "method": ("byol", "byol"),
    "probe": ("3", 3),
    "views": ("3", 3),
    "label_smoothing": ("0.1", 0.1),
    "lineage_weight": ("0.3", 0.3),
    "stage_temperature": ("0.5", 0.5),
    "lineage": ("tree.toml", Path("tree.toml")),
    "input": ("files", "files"),
    "sampler": ("mixed:0.5", "mixed:0.5"),
    "mixup": ("0.4", 0.4),
    "cutmix": ("0.6", 0.6),
    "policy": ("lineage", "lineage"),
    "crop_area": ("0.5 0.9", (0.5, 0.9)),
    "zoom": ("0.15", 0.15),
    "symmetry": ("eight", "eight"),
    "rotation": ("45", 45.0),
    "randaugment_ops": ("1", 1),
    "randaugment_magnitude": ("5", 5),
    "stain": ("0.08", 0.08),
    "crosstalk": ("0.2", 0.2),
    "grey": ("0.3", 0.3),
    "erase": ("0.25", 0.25),
    "background": ("0.75", 0.75),
    "density": ("0.4", 0.4),
    "contrast": ("0.3", 0.3),
    "brightness": ("0.1", 0.1),
    "blur": ("1.5", 1.5),
    "device": ("cuda", "cuda"),
    "amp": ("off", "off"),
    "compile": ("on", "on"),
    "compile_mode": ("max-autotune", "max-autotune"),
    "capture": ("off", "off"),
    "threads": ("3", 3),
    "sync_norm": ("", True),
    "save_every": ("2.5", 2.5),
    "keep": ("5", 5),
    "on_nonfinite": ("skip", "skip"),
    "nonfinite_budget": ("3", 3),
    "domains": ("Matek_19 --domains MyLab", ("Matek_19", "MyLab")),
    "track": ("wandb --track mlflow", ("wandb", "mlflow")),
}
"""For each setting what is typed after its option, and what that makes of it; none is the default."""


def test_trackers_can_be_switched_off():
    assert asked_of_training("--track", "none").track == ()


def test_each_option_sets_its_own_setting_and_nothing_else():
    assert GIVEN.keys() == TrainConfig.__dataclass_fields__.keys()
    apart = {"preset", *config.PRETRAINING}
    typed = {
        name: [f"--{name.replace('_', '-')}", *text.split()] for name, (text, _) in GIVEN.items() if name not in apart
    }
    for name, options in typed.items():
        assert asked_of_training(*options) == train_config(**{name: GIVEN[name][1]}) != TrainConfig(), name
    del typed["probe"]  # it refuses most of the others
    everything = asked_of_training("--preset", "quick", *(word for options in typed.values() for word in options))
    given = {name: value for name, (_, value) in GIVEN.items()}
    assert everything == TrainConfig(**{name: given[name] for name in ("preset", *typed)})


def test_each_option_of_pretraining_alone_sets_its_own_setting():
    plain = asked_of_training(command="pretrain")
    assert plain == train_config("pretrain")
    for name in config.PRETRAINING:
        text, value = GIVEN[name]
        assert asked_of_training(f"--{name}", text, command="pretrain") == replace(plain, **{name: value}) != plain


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("train", "--preset", "pretrain"), ("method = simclr learns without labels", "hemafast pretrain")),
        (("pretrain", "--preset", "quick"), ("method = None learns from labels", "--method simclr")),
    ],
)
def test_a_preset_of_the_other_command_is_refused(arguments, words, tmp_path):
    assert_is_one_line_error(hemafast(*arguments, cwd=tmp_path), *words)


@pytest.mark.parametrize("name", ["freeze_norm", "sync_norm"])
def test_a_switch_of_a_file_can_be_turned_off(tmp_path, name):
    (tmp_path / "on.toml").write_text(f"{name} = true\n")
    settings = ("--config", "on.toml")
    assert getattr(asked_of_training(*settings, cwd=tmp_path), name) is True
    assert getattr(asked_of_training(*settings, f"--no-{name.replace('_', '-')}", cwd=tmp_path), name) is False


@pytest.mark.parametrize(("typed", "batch_size"), [("auto", "auto"), ("8", 8)])
def test_a_batch_size_is_a_number_or_auto(typed, batch_size):
    assert asked_of_training("--batch-size", typed).batch_size == batch_size


@pytest.mark.parametrize(
    ("options", "schedule", "loss"),
    [
        ([], "constant", "cross-entropy"),
        (["--onecycle"], "onecycle", "cross-entropy"),
        (["--onecycle", "--schedule", "onecycle"], "onecycle", "cross-entropy"),
        (["--preset", "onecycle", "--no-onecycle"], "constant", "cross-entropy"),
        (["--weighted-loss"], "constant", "weighted"),
        (["--weighted-loss", "--loss", "weighted"], "constant", "weighted"),
        (["--preset", "weighted_loss", "--no-weighted-loss"], "constant", "cross-entropy"),
        (["--preset", "weighted_loss", "--onecycle", "--loss", "focal"], "onecycle", "focal"),
    ],
)
def test_a_short_form_is_its_long_form(options, schedule, loss):
    asked = asked_of_training(*options)
    assert (asked.schedule, asked.loss) == (schedule, loss)


@pytest.mark.parametrize(
    "options",
    [
        "--onecycle --schedule cosine",
        "--no-onecycle --schedule onecycle",
        "--weighted-loss --loss focal",
        "--no-weighted-loss --loss weighted",
    ],
)
def test_a_short_form_against_its_long_form_is_one_line(options):
    short, long = options.split(" ", maxsplit=1)
    assert_is_one_line_error(hemafast("train", *options.split()), f"{short} and {long} exclude each other")


def test_options_go_before_the_file_and_the_file_before_the_preset(tmp_path):
    (tmp_path / "mine.toml").write_text('preset = "best"\nepochs = 7\nlr = 0.5\n')
    settings = ("--config", "mine.toml")
    assert asked_of_training(*settings, cwd=tmp_path) == train_config("best", epochs=7, lr=0.5)
    assert asked_of_training(*settings, "--epochs", "9", cwd=tmp_path) == train_config("best", epochs=9, lr=0.5)
    assert asked_of_training(*settings, "--preset", "b0", cwd=tmp_path) == train_config("b0", epochs=7, lr=0.5)


def test_the_config_of_a_run_is_a_settings_file(tmp_path):
    asked = train_config("best", epochs=3, crop_area=(0.5, 0.9), track=("wandb",))
    (tmp_path / "config.json").write_text(to_json(asked))
    assert asked_of_training("--config", tmp_path / "config.json") == asked


def test_a_settings_file_that_does_not_fit_is_one_line(tmp_path):
    (tmp_path / "mine.toml").write_text("learning_rate = 0.5\n")
    for name, words in (("mine.toml", ["mine.toml", "learning_rate"]), ("none.toml", ["none.toml", "cannot be read"])):
        assert_is_one_line_error(hemafast("train", "--config", name, cwd=tmp_path), *words)


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [
        ("--sampler", "mixed:2", "sampler"),
        ("--rotation", "-3", "rotation"),
        ("--randaugment-magnitude", "31", "randaugment_magnitude"),
        ("--erase", "1.5", "erase"),
        ("--epochs", "0", "epochs"),
        ("--batch-size", "many", "batch_size"),
        ("--batch-size", "1", "batch_size"),
        ("--batch-size", "²", "batch_size"),
        ("--lr", "-1", "lr"),
        ("--lr", "nan", "lr"),
        ("--warmup", "1", "warmup"),
        ("--ema", "1", "ema"),
        ("--keep", "0", "keep"),
        ("--track", "tensorbored", "track"),
        ("--preset", "slow", "slow"),
        ("--fold", "-1", "fold"),
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_it(tmp_path, option, value, named):
    assert_is_one_line_error(hemafast("train", option, value, cwd=tmp_path), named, value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("--policy", config.PolicyName),
        ("--schedule", config.ScheduleName),
        ("--loss", config.LossName),
        ("--input", config.Input),
        ("--compile-mode", config.CompileMode),
    ],
)
def test_a_name_that_is_none_is_answered_with_all_of_them(option, kind):
    done = hemafast("train", option, "odd")
    assert done.returncode == 2
    said = done.stderr.replace("\n", "")
    assert option in said
    assert all(f"'{name}'" in said for name in get_args(kind))


def test_tars_that_are_not_there_are_one_line(tmp_path, prepared):
    done = hemafast("train", *TINY, "--input", "webdataset", "--data", prepared.folder, "--output", tmp_path / "runs")
    assert_is_one_line_error(done, "holds no tar files", "--format webdataset")
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_help_shows_the_default_and_what_presets_make_of_it():
    options = parameters_of("train")
    assert options["model"].help.endswith(
        "[resnet18; b0, onecycle, best, gpu: efficientnet_b0; "
        "quick, fast, robust, gpu_fast, probe: tf_efficientnet_lite0]"
    )
    assert options["ema"].help.endswith("[off; fast, robust, gpu_fast: 0.95; best: 0.999; gpu: 0.99]")
    assert options["threads"].help.endswith("[chosen for the machine]")
    assert options["seed"].help.endswith("[42]")


@pytest.mark.parametrize("width", [100, 160])
def test_help_is_whole_at_any_width(width):
    """No column is so narrow that a name or a choice is torn."""
    said = CliRunner().invoke(app, ["train", "--help-all"], env={"COLUMNS": str(width), "TERM": "dumb"}).output
    words = re.split(r"[\s,]+", said)
    for name, option in parameters_of("train").items():
        assert set(option.opts) <= set(words), name
    for kind in (config.PolicyName, config.ScheduleName, config.LossName, config.Input, config.CompileMode):
        assert all(name in said for name in get_args(kind))
    assert all((f"{name}:" in said) == ("method" not in make()) for name, make in PRESETS.items())
    assert max(map(len, said.splitlines())) <= width


def test_missing_source_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path / "none"), "none", "--source")


def test_empty_source_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "is empty", "hemafast demo")


def test_a_zip_that_is_none_is_one_line_and_nothing_is_written(tmp_path):
    (tmp_path / "Broken.zip").write_bytes(b"this is no zip")
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "Broken.zip", "not a zip")
    assert [path.name for path in tmp_path.iterdir()] == ["Broken.zip"]


def test_no_class_folders_is_one_line(tmp_path):
    (tmp_path / "BA_1.jpg").write_bytes(b"")
    assert_is_one_line_error(hemafast("prepare", "--source", tmp_path), "1 image outside class folders", "--labels")


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
    assert_is_one_line_error(strict, "none.png", "--strict", code=1)


def test_names_and_patterns_in_square_brackets_are_shown_as_they_are(tmp_path, make_archive):
    make_archive(tmp_path / "[bold]Cells[", {"basophil": 20}, extra={"basophil/odd.png": b""})
    result = hemafast("prepare", "--source", tmp_path, "--group-pattern", "^([A-Z]+_[0-9]1)", "--quiet")
    assert result.returncode == 0, result.stderr
    assert "[bold]Cells[" in result.stdout
    assert "note: 10 images have no group in ^([A-Z]+_[0-9]1)" in result.stdout


@pytest.mark.parametrize("output", ["taken/prepared", "taken"])
def test_an_output_that_cannot_be_made_is_one_line(tmp_path, make_archive, output):
    make_archive(tmp_path / "source" / "Cells", {"basophil": 4})
    (tmp_path / "taken").write_text("mine")
    result = hemafast("prepare", "--source", tmp_path / "source", "--output", tmp_path / output)
    assert_is_one_line_error(result, "taken", "--output")


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
        (["--weights", "none.safetensors"], ["none.safetensors"]),
        (["--fold", "1"], ["fold", "prepare"]),
        (["--sync-norm"], ["--sync-norm", "GPU"]),
    ],
)
def test_a_bad_training_request_is_one_line_and_leaves_no_run(tmp_path, prepared, arguments, words):
    result = hemafast("train", *TINY, "--data", prepared.folder, "--output", tmp_path / "runs", *arguments)
    assert_is_one_line_error(result, *words)
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_training_without_prepared_data_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("train", "--data", tmp_path), "not a prepared data set", "hemafast prepare")


def test_resuming_what_is_no_run_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("train", "--resume", tmp_path), "is not a run")


@pytest.mark.parametrize("options", [("--preset", "quick"), ("--config", "mine.toml")])
def test_resuming_from_another_starting_point_is_one_line(tmp_path, options):
    done = hemafast("train", "--resume", tmp_path, *options)
    assert_is_one_line_error(done, "already has its settings", "--preset and --config")


@pytest.mark.parametrize("options", [(), ("--resume", "auto")])
def test_allowing_changes_to_no_run_is_one_line(options):
    assert_is_one_line_error(hemafast("train", *options, "--allow-changes"), "--allow-changes", "--resume RUN")


def test_resuming_with_other_settings_is_one_line_that_names_the_change(tmp_path):
    (tmp_path / "config.json").write_text(to_json(TrainConfig()))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    refused = hemafast("train", "--resume", tmp_path, "--lr", "0.1", "--epochs", "40", "--batch-size", "64")
    assert_is_one_line_error(refused, "lr: 0.0001 -> 0.1", "batch_size: 32 -> 64", "--allow-changes")
    assert "epochs" not in refused.stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(("resume", "go_on"), [([], False), (["--resume", "auto"], True)])
def test_resume_auto_goes_on_with_what_is_there(monkeypatch, resume, go_on):
    asked = []
    monkeypatch.setattr("hemafast.cli.training.refuse_missing_data", lambda folder: None)
    monkeypatch.setattr("hemafast.engine.trainer.train", lambda config, *, go_on, **_: asked.append(go_on))
    assert hemafast("train", *resume).returncode == 0
    assert asked == [go_on]


def test_resuming_hands_on_what_was_typed_and_nothing_else(monkeypatch, tmp_path):
    asked, run = [], tmp_path / "a"
    run.mkdir()
    (run / "config.json").write_text("{}")
    monkeypatch.setattr("hemafast.engine.trainer.resume", lambda *arguments, **named: asked.append((arguments, named)))
    assert hemafast("train", "--resume", run, "--epochs", "50", "--onecycle", "--allow-changes").returncode == 0
    (((folder, changes), named),) = asked
    assert (folder, changes) == (run, {"epochs": 50, "schedule": "onecycle"})
    assert named.pop("began") <= time.monotonic()
    assert not named.pop("progress").shows
    assert named == {"allow_changes": True}


def test_a_time_budget_is_typed_as_people_write_it():
    assert asked_of_training("--time-budget", "1h30m").time_budget == 5400
    assert asked_of_training().time_budget is None
    assert_is_one_line_error(hemafast("train", "--time-budget", "soon"), "'soon' is not a duration")


def test_sides_to_grow_from_are_typed_as_a_list():
    assert asked_of_training("--image-size", "128", "--growing-from", "64,96").growing_from == (64, 96)
    assert asked_of_training("--growing-from", "off").growing_from == ()
    assert_is_one_line_error(hemafast("train", "--growing-from", "small"), "'small' is not a list of sizes")
    assert_is_one_line_error(hemafast("train", "--image-size", "64", "--growing-from", "96"), "does not rise")
    assert_is_one_line_error(hemafast("train", "--preset", "best", "--image-size", "64"), "--growing-from off")


def test_evaluating_what_is_no_run_is_one_line(tmp_path):
    assert_is_one_line_error(hemafast("evaluate", tmp_path), "is not a run")


def test_an_unknown_option_exits_with_2():
    assert hemafast("train", "--turbo").returncode == 2


def interrupt_behind_an_epoch(output):
    """The process that calls it gets Ctrl-C once a log below `output` tells of an epoch."""

    def wait_and_interrupt():
        while not any("epoch 1/" in log.read_text(encoding="utf-8") for log in output.glob("*/train.log")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait_and_interrupt, daemon=True).start()


@pytest.mark.slow
def test_ctrl_c_exits_with_130_and_says_how_to_go_on(tmp_path, prepared):
    asked = (*ENDLESS, "--data", prepared.folder, "--output", tmp_path)
    ended = forked.hemafast(*asked, cwd=tmp_path, timeout=120, first=partial(interrupt_behind_an_epoch, tmp_path))
    assert ended.returncode == 130
    assert "--resume" in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr


@pytest.mark.slow
def test_quiet_training_still_fills_the_log(tmp_path, prepared):
    result = hemafast("train", *TINY, "--epochs", "1", "-q", "--data", prepared.folder, "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "epoch 1/1" in next(tmp_path.glob("*/train.log")).read_text(encoding="utf-8")
    assert "INFO" not in result.stderr
    assert "macro-F1" in result.stdout


@pytest.mark.slow
def test_ctrl_c_on_a_terminal_gives_the_terminal_back(tmp_path, prepared):
    import pty
    import termios

    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    command = [sys.executable, "-m", "hemafast", *ENDLESS, "--data", str(prepared.folder), "--output", str(tmp_path)]
    # A session of its own, whose terminal this is: ^C typed there is a signal to the process.
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=_take_terminal,  # noqa: PLW1509 - one system call
    ) as process:
        try:
            said = b""
            # The log tells each epoch; the panel shows the one it is in when it is drawn, and may jump over any.
            while not re.search(rb"epoch \d+/500.*train loss", re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", said)):
                assert process.poll() is None
                said += os.read(ours, 1024) if select.select([ours], [], [], 0.2)[0] else b""
            assert b"starting: libraries, data and network" in said
            os.write(ours, b"\x03")
            said = b""
            while process.poll() is None:
                said += os.read(ours, 1024) if select.select([ours], [], [], 0.2)[0] else b""
        finally:
            process.kill()
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
