"""What a run leaves on disk, and what it refuses before it writes anything."""

import json
import os
import signal
from datetime import datetime

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hemafast import run_folder
from hemafast.config import TrainConfig, checked, train_config
from hemafast.engine import trainer
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import column, read_rows
from hemafast.engine.trainer import train
from hemafast.errors import HemafastError
from hemafast.run_folder import filling_run_folder, read_config

SPLITS = {"train": "training", "val": "validation"}


def test_a_run_folder_holds_settings_machine_logs_and_both_checkpoints(settings, dataset):
    config = settings(epochs=2, track=["tensorboard"])
    folder = train(config)
    assert folder.parent == config.output
    assert {path.name for path in folder.iterdir()} == {
        ".lock",
        "command.txt",
        "config.json",
        "machine.json",
        "train.log",
        "training_log.csv",
        "tb",
        "best_model.safetensors",
        "last_model.ckpt",
        "last_model.ckpt.1",
    }
    assert checked(TrainConfig, json.loads((folder / "config.json").read_text(encoding="utf-8"))) == config
    assert read_config(folder) == config
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    assert machine["device"] == "cpu"
    assert {"device", "precision", "torch.compile"} <= {choice["name"] for choice in machine["choices"]}

    rows = read_rows(folder)
    assert [(row["epoch"], row["phase"]) for row in rows] == [(1, "train"), (1, "val"), (2, "train"), (2, "val")]
    assert {"loss", "accuracy", "f1_macro", "lr", "grad_norm", "data_wait_share", "bad_updates"} <= set(rows[0])
    assert {"loss", "accuracy", "f1_macro", "f1_macro_Acevedo_20", "f1_macro_Matek_19"} <= set(rows[1])
    events = EventAccumulator(str(folder / "tb")).Reload()
    assert [event.step for event in events.Scalars("val/f1_macro")] == [1, 2]
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(column(rows, "train", "loss"))
    assert len(events.Images("confusion")) == 2
    log = (folder / "train.log").read_text(encoding="utf-8")
    images = " and ".join(f"{dataset.counts(split).sum()} {name} images" for split, name in SPLITS.items())
    assert f"{images} of Acevedo_20, Matek_19" in log
    assert "epoch 2/2" in log


def test_the_best_model_is_that_of_the_epoch_with_the_highest_macro_f1(settings):
    folder = train(settings(epochs=3))
    scores = column(read_rows(folder), "val", "f1_macro")
    assert load_best(folder / "best_model.safetensors")[1].epoch == 1 + scores.index(max(scores))
    progress = load_last(folder / "last_model.ckpt")["progress"]
    assert progress["best_f1"] == max(scores)
    assert progress["epochs_done"] == 3


@pytest.mark.parametrize(
    "changes",
    [{"weights": "missing.safetensors"}, {"data": "missing"}, {"freeze_stages": 9}],
    ids=["weights", "data", "more stages than the network has"],
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(settings, changes):
    config = settings(**changes)
    with pytest.raises(HemafastError):
        train(config)
    assert list(config.output.iterdir()) == []


def test_two_runs_that_begin_in_the_same_second_get_two_folders(settings, monkeypatch):
    class Frozen(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)

    monkeypatch.setattr(run_folder, "datetime", Frozen)
    config = settings()
    folders = [train(config) for _ in range(2)]
    assert folders[0] != folders[1]
    assert all(len(read_rows(folder)) == 2 for folder in folders)


def test_an_output_that_is_a_file_is_refused(settings, tmp_path):
    (tmp_path / "runs").write_text("in the way", encoding="utf-8")
    with pytest.raises(HemafastError, match="Choose another --output"):
        train(settings(output=tmp_path / "runs"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(settings):
    config = settings(lr=1e30)
    with pytest.raises(HemafastError, match="--lr"):
        train(config)
    (folder,) = config.output.iterdir()
    state = load_last(folder / "last_model.ckpt")
    assert state["progress"]["epochs_done"] == 0
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert "stopped" in (folder / "train.log").read_text(encoding="utf-8")


def test_weights_that_the_last_step_of_an_epoch_ruined_never_reach_the_checkpoint(settings):
    config = settings(lr=1e30, epochs=2, batch_size=64)  # one step an epoch: its loss is that of the sound weights
    with pytest.raises(HemafastError, match="--lr"):
        train(config)
    (folder,) = config.output.iterdir()
    weights = load_last(folder / "last_model.ckpt")["model"].values()
    assert all(tensor.abs().max() < 1e6 for tensor in weights if tensor.is_floating_point())


def test_the_log_is_whole_whoever_calls(settings, monkeypatch):
    monkeypatch.setattr(trainer.logger, "level", 0)
    trainer.logger.manager._clear_cache()
    folder = train(settings())
    assert "epoch 1/1" in (folder / "train.log").read_text(encoding="utf-8")


def test_what_a_killed_process_left_of_a_folder_is_removed_and_what_another_fills_stays(tmp_path):
    config = train_config(output=tmp_path)
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "config.json").touch()
    pid = os.fork()
    if not pid:
        with filling_run_folder(config, "killed") as folder:
            (folder / ".config.json.part").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    (left,) = tmp_path.glob("*killed*")
    assert (left / ".config.json.part").exists()
    with filling_run_folder(config, "first") as first:
        assert not left.exists()
        with filling_run_folder(config, "second") as second:
            assert first.exists()
        assert second.exists()
    assert whole.exists()
    assert not [*first.iterdir(), *second.iterdir()]


def test_a_folder_that_cannot_be_filled_is_not_there(tmp_path):
    def fill() -> None:
        with filling_run_folder(train_config(output=tmp_path), "full"):
            raise OSError(28, "No space left on device")

    with pytest.raises(HemafastError, match="full cannot be written"):
        fill()
    assert not [*tmp_path.iterdir()]
