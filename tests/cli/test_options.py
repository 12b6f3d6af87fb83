"""The options of every command are frozen: a new one, or another type or default, is seen here and meant.

Write the list anew with `PYTHONPATH=tests python tests/cli/test_options.py`.
"""

import json
import re
import time
from inspect import signature
from pathlib import Path
from typing import get_args

import pytest
import typer
from command import asked_of_training, hemafast
from typer.testing import CliRunner

from hemafast.cli import app
from hemafast.cli.options import Asked, configured
from hemafast.config import PRETRAINING, PrepareConfig, TrainConfig, option_of

FROZEN = Path(__file__).with_name("options.json")
MADE = ("train", "lr-find", "bench", "sweep", "crossdomain")
"""Commands whose options are made from TrainConfig."""


def callback_of(command):
    (found,) = (
        one.callback
        for one in app.registered_commands
        if (one.name or one.callback.__name__.replace("_", "-")) == command
    )
    return found


def options_of(command):
    """Each option of a command: its flags, its type, and its default as --help has it."""
    found, types = (
        {},
        {
            name: parameter.annotation
            for name, parameter in signature(callback_of(command), eval_str=True).parameters.items()
        },
    )
    for parameter in typer.main.get_command(app).commands[command].params:
        flags = "/".join([*parameter.opts, *parameter.secondary_opts])
        said = re.search(r"\[([^][]*)\]", getattr(parameter, "help", None) or "")
        default = parameter.default if parameter.default is not None or said is None else said[1]
        shown = getattr(parameter, "show_default", None)
        found[flags] = f"{plain(types[parameter.name])} = {shown if isinstance(shown, str) else default}"
    return found


def plain(annotation):
    """A type without what typer is told about it: "int | None"."""
    kind = get_args(annotation)[0]
    return (
        kind.__name__
        if isinstance(kind, type) and not get_args(kind)
        else re.sub(r"\b(pathlib|typing)\.", "", str(kind))
    )


def all_options():
    return {command: options_of(command) for command in sorted(typer.main.get_command(app).commands)}


def test_no_option_appears_changes_or_goes_unseen():
    assert all_options() == json.loads(FROZEN.read_text(encoding="utf-8"))


@pytest.mark.parametrize("command", MADE)
def test_commands_that_train_take_every_setting(command):
    missing = {*PRETRAINING, *(("output",) if command in ("lr-find", "bench") else ())}
    for name in TrainConfig.__dataclass_fields__.keys() - missing:
        flag = option_of(TrainConfig, name).flag or f"--{name.replace('_', '-')}"
        assert any(flag in flags.split("/") for flags in options_of(command)), (command, flag)
    assert "--config" in options_of(command)


@pytest.mark.parametrize("command", [*MADE, "prepare"])
def test_help_shows_what_most_people_need_and_help_all_everything(command):
    short, long = (
        CliRunner().invoke(app, [command, flag], env={"COLUMNS": "200"}).output for flag in ("--help", "--help-all")
    )
    shown, everything = (set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) for text in (short, long))
    assert {flag for flags in options_of(command) for flag in flags.split("/") if flag.startswith("--")} <= everything
    assert shown < everything
    if command == "train":
        assert 20 <= len([flag for flag in shown if not flag.startswith("--no-")]) <= 32


def test_a_command_of_a_few_settings_gets_them_as_their_fields_have_them():
    small, given = typer.Typer(), {}

    @small.command()
    @configured(PrepareConfig, fields=("class_map", "columns", "groups"))
    def some(asked: Asked) -> None:
        given.update(asked)

    typed = ["--class-map", "Neutrophil=neutrophil_segmented,Platelet=", "--columns", "path=Image,label=Class"]
    assert CliRunner().invoke(small, typed).exit_code == 0
    assert given == {
        "class_map": {"Neutrophil": "neutrophil_segmented", "Platelet": ""},
        "columns": {"path": "Image", "label": "Class"},
    }


def test_help_after_help_all_is_short_again():
    CliRunner().invoke(app, ["train", "--help-all"])
    assert "--logit-tau" not in CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output


def test_a_domain_may_be_named_by_either_spelling():
    assert asked_of_training("--domain", "A", "--domains", "B").domains == ("A", "B")


TYPOS = [
    (["train", "--modle", "x"], "--model"),
    (["train", "--preset", "fats"], "fast"),
    (["train", "--model", "resnet18x"], "resnet18"),
    (["train", "--epochs", "0"], "epochs = 0"),
    (["train", "--data", "nowhere"], "nowhere"),
    (["train", "--config", "nowhere.toml"], "nowhere.toml"),
    (["train", "--resume", "nowhere"], "nowhere"),
    (["lr-find", "--preset", "quikc"], "quick"),
    (["bench", "--model", "resent18"], "resnet18"),
    (["bench", "--data", "nowhere"], "nowhere"),
    (["sweep", "seed-table", "--data", "nowhere"], "nowhere"),
    (["sweep", "seed-tabel"], "seed-table"),
    (["crossdomain", "--policy", "basci"], "basic"),
    (["prepare", "--val-fraction", "2"], "val_fraction"),
    (["evaluate", "nowhere"], "nowhere"),
    (["report", "latset"], "latest"),
    (["predict", "nowhere", "cells"], "nowhere"),
    (["export", "nowhere"], "nowhere"),
    (["explain", "nowhere", "cell.png"], "nowhere"),
]


@pytest.mark.parametrize(("typed", "named"), TYPOS, ids=[" ".join(typed) for typed, _ in TYPOS])
def test_a_typo_is_answered_before_anything_heavy_is_imported(tmp_path, monkeypatch, typed, named):
    def refuse(name, *arguments, **named_arguments):
        if name.partition(".")[0] in ("torch", "timm", "nvidia", "pandas"):
            pytest.fail(f"{name} was imported")
        return imported(name, *arguments, **named_arguments)

    import builtins

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.chdir(tmp_path)
    began = time.process_time()
    done = hemafast(*typed)
    assert time.process_time() - began < 1
    assert done.returncode == 2
    assert named in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_of_data_with_a_close_name_is_offered(tmp_path, monkeypatch):
    (tmp_path / "Source" / "prepared").mkdir(parents=True)
    (tmp_path / "Source" / "prepared" / "dataset.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    done = hemafast("train", "--data", "Source/preparde")
    assert "Did you mean --data Source/prepared?" in done.stderr


if __name__ == "__main__":
    FROZEN.write_text(json.dumps(all_options(), indent=2) + "\n", encoding="utf-8")
