"""Trackers: the real TensorBoard, and recording stand-ins with the call signatures of the others."""

import importlib.util
import logging
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hemafast.engine.trackers import open_trackers, refuse_missing
from hemafast.errors import HemafastError
from hemafast.pictures import confusion_figure

OTHERS = ("wandb", "mlflow", "trackio")
SETTINGS = {"epochs": 3, "model": "test_resnet"}


@pytest.fixture
def calls():
    """What the stand-ins were called with, in order."""
    return []


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "20260102_030405_test: resnet"
    made.mkdir()
    return made


@pytest.fixture
def wandb(calls, monkeypatch):
    class Run:
        def log(self, data, step=None, commit=None):
            calls.append(("log", data))

        def define_metric(self, name, step_metric=None):
            calls.append(("axis", name, step_metric))

        def finish(self, exit_code=None):
            calls.append(("finish",))

    def init(entity=None, project=None, dir=None, id=None, name=None, config=None, resume=None, settings=None):
        calls.append(("init", project, id, name, config, resume))
        return Run()

    module = SimpleNamespace(init=init, Image=np.asarray, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


@pytest.fixture
def trackio(calls, monkeypatch):
    class Run:
        def log(self, metrics, step=None):
            calls.append(("log", metrics, step))

    def init(project, name=None, config=None, resume="never", embed=True):
        print("* Trackio project initialized")
        calls.append(("init", project, name, config, resume))
        return Run()

    def finish():
        print("* Run finished.")
        calls.append(("finish",))

    module = SimpleNamespace(init=init, finish=finish, Image=np.asarray)
    monkeypatch.setitem(sys.modules, "trackio", module)
    return module


@pytest.fixture
def mlflow(calls, monkeypatch):
    def start_run(run_id=None, experiment_id=None, run_name=None):
        calls.append(("start", run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "chosen by mlflow"))

    class MlflowClient:
        def log_batch(self, run_id, metrics=()):
            calls.append(("batch", run_id, list(metrics)))

    module = SimpleNamespace(
        set_experiment=lambda experiment_name=None: calls.append(("experiment", experiment_name)),
        start_run=start_run,
        log_params=lambda params: calls.append(("params", params)),
        log_image=lambda image, artifact_file=None: calls.append(("image", image.shape[2], artifact_file)),
        end_run=lambda status="FINISHED": calls.append(("end",)),
        entities=SimpleNamespace(Metric=lambda key, value, timestamp, step: (key, value, step)),
        MlflowClient=MlflowClient,
    )
    monkeypatch.setitem(sys.modules, "mlflow", module)
    return module


def opened(name, folder, first_epoch=1):
    (tracker,) = open_trackers([name], folder, SETTINGS, first_epoch=first_epoch)
    return tracker


def epoch_of(tracker, epoch, steps=2):
    """An epoch of `steps` optimizer steps, with a measurement equal to its number."""
    for step in range(steps * (epoch - 1) + 1, steps * epoch + 1):
        tracker.scalars({"lr": 0.5}, step=step)
    tracker.scalars({"train/loss": epoch, "val/f1_macro_a,b": float("nan")}, step=epoch)


def picture():
    return confusion_figure({"epoch 1": np.array([[3, 1], [0, 2]])}, ["$x$", "größe 細胞"])


def curve(folder, name):
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_tensorboard_shows_epochs_and_a_picture_as_one_run(folder):
    tracker = opened("tensorboard", folder)
    epoch_of(tracker, 1)
    tracker.figure("confusion", picture(), step=1)
    assert curve(folder / "tb", "train/loss") == [(1, 1.0)]  # without waiting for the end of the run
    tracker.close()
    assert {file.parent for file in folder.rglob("events.*")} == {folder / "tb"}
    (image,) = EventAccumulator(str(folder / "tb"), {"images": 0}).Reload().Images("confusion")
    assert (image.step, image.width > 300, image.height > 300) == (1, True, True)


def test_epochs_that_are_run_again_are_replaced_in_tensorboard(folder):
    tracker = opened("tensorboard", folder)
    for epoch in (1, 2, 3):
        epoch_of(tracker, epoch, steps=4)
    tracker.close()
    tracker = opened("tensorboard", folder, first_epoch=2)
    tracker.scalars({"lr": 0.25}, step=5)
    tracker.scalars({"train/loss": 7.0}, step=2)
    tracker.close()
    assert curve(folder / "tb", "train/loss") == [(1, 1.0), (2, 7.0)]


def test_wandb_goes_on_with_the_run_that_is_named_for_the_folder(folder, wandb, calls):
    for first_epoch in (1, 3):
        opened("wandb", folder, first_epoch).close()
    first, second = (call for call in calls if call[0] == "init")
    assert first == second == ("init", "hemafast", "20260102_030405_test--resnet", folder.name, SETTINGS, "allow")


def test_wandb_has_an_axis_of_epochs_and_one_of_steps(folder, wandb, calls):
    tracker = opened("wandb", folder)
    epoch_of(tracker, 2)
    tracker.figure("confusion", picture(), step=2)
    tracker.close()
    axes = {call[1]: call[2] for call in calls if call[0] == "axis"}
    assert axes == {"train/*": "epoch", "val/*": "epoch", "confusion": "epoch", "lr": "step"}
    *logged, last = (call[1] for call in calls if call[0] == "log")
    assert logged[:2] == [{"lr": 0.5, "step": 3}, {"lr": 0.5, "step": 4}]
    assert (logged[2]["train/loss"], logged[2]["epoch"]) == (2, 2)
    assert (last["confusion"].shape[2], last["confusion"].dtype, last["epoch"]) == (3, np.uint8, 2)
    assert calls[-1] == ("finish",)


def test_mlflow_goes_on_with_the_run_whose_id_lies_in_the_folder(folder, mlflow, calls):
    for first_epoch in (1, 3):
        opened("mlflow", folder, first_epoch).close()
    assert [call for call in calls if call[0] == "start"] == [
        ("start", None, folder.name),
        ("start", "chosen by mlflow", None),
    ]
    assert [call for call in calls if call[0] == "params"] == [("params", SETTINGS)]


def test_mlflow_gets_one_call_an_epoch_and_names_that_it_takes(folder, mlflow, calls):
    tracker = opened("mlflow", folder)
    epoch_of(tracker, 2)
    tracker.figure("confusion", picture(), step=2)
    tracker.scalars({"lr": 0.25}, step=5)
    tracker.close()
    epoch, image, rest, end = calls[-4:]
    assert epoch[1] == "chosen by mlflow"
    assert [(key, step) for key, _, step in epoch[2]] == [
        ("lr", 3),
        ("lr", 4),
        ("train/loss", 2),
        ("val/f1_macro_a_b", 2),
    ]
    assert image == ("image", 3, "confusion/0002.png")
    assert rest[2] == [("lr", 0.25, 5)]
    assert end == ("end",)


def test_trackio_goes_on_with_the_run_of_that_name_and_keeps_standard_output_clean(folder, trackio, calls, capsys):
    for epoch in (1, 2):
        tracker = opened("trackio", folder, epoch)
        epoch_of(tracker, epoch, steps=1)
        tracker.figure("confusion", picture(), step=epoch)
        tracker.close()
    assert [call for call in calls if call[0] == "init"] == [("init", "hemafast", folder.name, SETTINGS, "allow")] * 2
    assert [call[2] for call in calls if call[0] == "log"] == [1, 1, 1, 2, 2, 2]
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", OTHERS)
def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(folder, name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    for refuse in (lambda: opened(name, folder), lambda: refuse_missing([name])):
        with pytest.raises(HemafastError, match=f"pip install {name}"):
            refuse()


def test_what_is_installed_is_not_refused():
    refuse_missing(["tensorboard"])


def test_a_tracker_that_cannot_be_opened_is_refused_and_those_before_it_are_closed(folder, wandb, trackio, calls):
    def no_key(**_):
        raise RuntimeError("No API key configured")

    wandb.init = no_key
    with pytest.raises(HemafastError, match="wandb cannot be opened"):
        open_trackers(["trackio", "wandb"], folder, SETTINGS, first_epoch=1)
    assert calls[-1] == ("finish",)


def test_a_tracker_that_fails_is_left_out_with_one_warning(folder, wandb, calls, caplog):
    def broken(self, data):
        calls.append(("broken",))
        raise ConnectionError("the network\nis gone")

    tracker = opened("wandb", folder)
    type(tracker._tracker._run).log = broken
    with caplog.at_level(logging.WARNING, "hemafast"):
        for epoch in (1, 2):
            epoch_of(tracker, epoch)
            tracker.figure("confusion", picture(), step=epoch)
        tracker.close()
    assert [record.getMessage() for record in caplog.records] == [
        "wandb failed (the network is gone). The run continues without it"
    ]
    assert calls.count(("broken",)) == 1


def test_ctrl_c_within_a_tracker_stops_the_run(folder, wandb):
    def interrupted(self, data):
        raise KeyboardInterrupt

    tracker = opened("wandb", folder)
    type(tracker._tracker._run).log = interrupted
    with pytest.raises(KeyboardInterrupt):
        tracker.scalars({"train/loss": 1.0}, step=1)


def test_a_tracker_named_twice_is_opened_once(folder, trackio):
    assert len(open_trackers(["trackio", "trackio"], folder, SETTINGS, first_epoch=1)) == 1


def test_a_disk_that_takes_no_events_is_a_warning_and_no_traceback(folder, caplog, capfd, monkeypatch):
    """TensorBoard writes in a thread, whose error Python would print."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    (tracker,) = open_trackers(["tensorboard"], folder, SETTINGS, first_epoch=1)
    (folder / "tb").rename(folder / "gone")
    for epoch in (1, 2, 3):
        tracker.scalars({"val/loss": 1.0}, step=epoch)
    tracker.close()
    assert "tensorboard failed" in caplog.text
    assert "Traceback" not in capfd.readouterr().err
