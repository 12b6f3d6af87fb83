"""A run that is stopped and resumed is the run that was never stopped."""

import hashlib
import json
import logging
import pickle
import shutil
import signal
import subprocess
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hemafast.config import FREE, TrainConfig, option_of, to_plain
from hemafast.engine import hooks, task
from hemafast.engine.checkpoint import load_last
from hemafast.engine.journal import Journal, read_rows
from hemafast.engine.step import EvalStep, TrainStep
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.run_folder import LAST, read_config

UPDATES = 3  # an epoch: 47 images are batches of 10, 10 | 10, 10 | 7
EPOCHS = 3
EVERYTHING = {
    "epochs": EPOCHS,
    "batch_size": 10,
    "accumulate": 2,
    "policy": "strong",
    "sampler": "mixed:0.5",
    "mixup": 0.4,
    "cutmix": 0.5,
    "dropout": 0.3,
    "schedule": "onecycle",
    "loss": "weighted",
    "label_smoothing": 0.1,
    "lineage_weight": 0.3,
    "stage_temperature": 0.5,
    "clip_grad": 1.0,
    "ema": 0.9,
    "layer_decay": 0.8,
    "image_size": 48,
    "growing_from": [32],  # grows within the second epoch
    "track": [],
}

NEXT_EVENT_FILE = 1.0
"""Seconds. TensorBoard reads its files in order of their second; within one by the text of a counter, 10 before 9."""


@pytest.fixture(scope="module")
def straight(settings):
    """The finished run that was never stopped, with everything on that depends on chance or on what came before."""
    return train(settings(**EVERYTHING))


@pytest.fixture(scope="module")
def tracked(settings):
    """The same with TensorBoard."""
    return train(settings(**EVERYTHING | {"track": ["tensorboard"]}))


@pytest.fixture(scope="module")
def stopped(settings, signal_at):
    """The same in its fourth of nine updates, the first of epoch 2. Copy it before going on."""
    config = settings(**EVERYTHING)
    with signal_at(4), pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    return folder


@pytest.fixture
def in_pieces(settings, signal_at):
    """`in_pieces(*stops, finish=True, **changes)`: that run, stopped behind each of these updates and resumed."""

    def make(*stops: int, finish: bool = True, number: int = signal.SIGINT, **changes) -> Path:
        config = settings(**EVERYTHING | changes)
        go_on = lambda: train(config)  # noqa: E731 - it becomes another one below
        for stop in stops:
            with signal_at(stop, number), pytest.raises(StoppedError, match=f"after {stop} updates?.*--resume"):
                go_on()
            (folder,) = config.output.iterdir()
            assert load_last(folder / LAST)["progress"]["steps_done"] == stop
            go_on = lambda: resume(folder)  # noqa: B023, E731
            if "track" in changes:
                time.sleep(NEXT_EVENT_FILE)
        return go_on() if finish else folder

    return make


class Crash(BaseException):
    """What nobody catches: the process is gone."""


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Step and value of each measurement in TensorBoard, but for times."""
    events = EventAccumulator(str(folder / "tb"), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
        if not tag.endswith(("seconds", "per_second", "share"))
    }


def files(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of each file but the lock, which a process that looks into a run holds meanwhile."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "run"))


def with_one_checkpoint(folder: Path, target: Path) -> Path:
    """A copy of a run with its newest checkpoint alone."""
    copy = copied(folder, target)
    (copy / f"{LAST}.1").unlink()
    return copy


def redirected(folder: Path, target: Path, **changes) -> Path:
    """A copy of a run with other settings in its config.json."""
    copy = with_one_checkpoint(folder, target)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | changes, default=str), encoding="utf-8")
    return copy


@pytest.mark.parametrize("stop", range(1, UPDATES * EPOCHS + 1))
def test_a_run_stopped_behind_any_update_and_resumed_equals_one_never_stopped(
    in_pieces, straight, assert_equal_runs, stop
):
    assert_equal_runs(in_pieces(stop), straight)


@pytest.mark.parametrize("stops", [(2, 5), range(1, UPDATES * EPOCHS + 1)], ids=["twice", "behind every update"])
def test_a_run_may_be_stopped_many_times(in_pieces, straight, assert_equal_runs, stops):
    assert_equal_runs(in_pieces(*stops), straight)


def test_each_curve_of_a_run_in_pieces_has_one_value_a_step(in_pieces, tracked):
    found = curves(in_pieces(2, 6, 7, track=["tensorboard"]))
    assert found == curves(tracked)
    assert {"train/loss", "train/bad_updates", "val/f1_macro"} <= set(found)
    assert all([step for step, _ in values] == list(range(1, EPOCHS + 1)) for values in found.values())


def test_the_epochs_of_the_run_do_differ(straight):
    """Or equal runs would say little: the average moves, and the best model is one of several."""
    rows = [row for row in read_rows(straight) if row["phase"] == "val"]
    assert len({row["loss"] for row in rows}) == EPOCHS


@pytest.mark.parametrize("batch", [1, 2])
def test_a_stop_within_validation_loses_nothing(settings, straight, assert_equal_runs, batch, monkeypatch):
    config, calls, evaluate = settings(**EVERYTHING), count(1), EvalStep.__call__
    in_epoch_2 = 2 + batch  # 11 images are two batches

    def evaluate_and_signal(self, *arguments):
        if next(calls) == in_epoch_2:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, *arguments)

    monkeypatch.setattr(EvalStep, "__call__", evaluate_and_signal)
    with pytest.raises(StoppedError, match="SIGTERM after 6 updates, in epoch 2 of 3"):
        train(config)
    (folder,) = config.output.iterdir()
    assert [row["epoch"] for row in read_rows(folder)] == [1, 1]
    resume(folder)
    assert_equal_runs(folder, straight)


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [(task, "model_bytes", 1), (Journal, "end_epoch", 2), (hooks, "save_last", 3)],
    ids=["before the best model", "before the row of epoch 2", "between the row and the checkpoint of epoch 2"],
)
def test_a_crash_behind_validation_loses_nothing(settings, tracked, assert_equal_runs, place, name, call):
    config = settings(**EVERYTHING | {"track": ["tensorboard"]})
    calls, original = count(1), getattr(place, name)

    def crash_or_do(*arguments, **named):
        if next(calls) == call:
            raise Crash
        return original(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, crash_or_do)
        with pytest.raises(Crash):
            train(config)
    (folder,) = config.output.iterdir()
    time.sleep(NEXT_EVENT_FILE)
    resume(folder)
    assert_equal_runs(folder, tracked)
    assert curves(folder) == curves(tracked)


def test_a_damaged_checkpoint_costs_the_epoch_behind_the_one_before(straight, assert_equal_runs, tmp_path, caplog):
    folder = copied(straight, tmp_path)
    content = bytearray((folder / LAST).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / LAST).write_bytes(content)
    resume(folder)
    assert f"{LAST} cannot be read (.last_model.ckpt/data/" in caplog.text
    assert_equal_runs(folder, straight)


def test_resuming_a_finished_run_says_so_and_changes_no_file(straight, caplog):
    before = files(straight)
    with caplog.at_level(logging.INFO, "hemafast"):
        assert resume(straight) == straight
        assert resume(straight, {"epochs": 2, "keep": 5}) == straight
    assert [record.getMessage().count("is finished") for record in caplog.records] == [1, 1]
    assert files(straight) == before


def test_more_epochs_extend_a_finished_run(settings, assert_equal_runs):
    # Neither the rate nor the image size may be laid over the epochs: a longer course would lay them elsewhere.
    constant = EVERYTHING | {"schedule": "constant", "growing_from": ()}
    folder = train(settings(**constant | {"epochs": 1}))
    resume(folder, {"epochs": 2})
    assert read_config(folder).epochs == 2
    assert_equal_runs(folder, train(settings(**constant | {"epochs": 2})))


def test_make_resume_extends_a_run():
    root = Path(__file__).parents[2]
    command = ["make", "--no-print-directory", "-n", "resume", "OUTDIR=runs/a run"]
    said = [
        subprocess.run([*command, *more], cwd=root, capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        for more in ([], ["EPOCHS=50"])
    ]
    assert [line.partition("hemafast ")[2].rstrip() for line in said] == [
        "train --resume 'runs/a run'",
        "train --resume 'runs/a run' --epochs 50",
    ]


def test_epochs_out_of_range_are_refused(straight):
    with pytest.raises(HemafastError, match="epochs"):
        resume(straight, {"epochs": 0})


CHANGES = {
    "lr": 2e-3,
    "weight_decay": 0.5,
    "batch_size": 8,
    "accumulate": 1,
    "policy": "none",
    "sampler": "natural",
    "seed": 7,
    "image_size": 56,
    "ema": None,
    "loss": "focal",
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_setting_that_changes_what_is_learned_is_refused_by_name(straight, name):
    before = files(straight)
    with pytest.raises(HemafastError, match=rf"\({name}: .* -> .*--allow-changes") as refused:
        resume(straight, {name: CHANGES[name], "epochs": 9})
    assert "epochs" not in refused.value.problem
    assert files(straight) == before


@pytest.mark.parametrize("name", ["batch_size", "policy", "image_size", "ema"])
def test_it_can_be_taken_over(stopped, tmp_path, name):
    folder = copied(stopped, tmp_path)
    resume(folder, {name: CHANGES[name], "epochs": 2}, allow_changes=True)
    assert to_plain(read_config(folder))[name] == CHANGES[name]
    assert f"changed on resume: {name}: " in (folder / "train.log").read_text(encoding="utf-8")
    assert [row["epoch"] for row in read_rows(folder)] == [1, 1, 2, 2]


def test_a_run_says_what_of_another_machine_may_change_its_last_digits(stopped, tmp_path):
    folder = copied(stopped, tmp_path)
    machine = json.loads((folder / "machine.json").read_text())
    (threads,) = (choice for choice in machine["choices"] if choice["name"] == "torch threads")
    here, threads["value"] = threads["value"], "64"
    (folder / "machine.json").write_text(json.dumps(machine))
    for epochs in (2, 3):  # the second time it is the same machine
        resume(folder, {"epochs": epochs})
    (line,) = (line for line in (folder / "train.log").read_text().splitlines() if "changed on resume" in line)
    assert line.endswith(f"torch threads: 64 -> {here}, so sums may differ in the last digit")


def test_changes_reach_the_optimizer_and_the_epoch_under_way_begins_anew(in_pieces, monkeypatch):
    folder, seen, step = in_pieces(4, finish=False, layer_decay=None), [], TrainStep.__call__

    def step_and_look(self, batch, rate, *arguments, **named):
        groups = self._optimizer.param_groups
        step(self, batch, rate, *arguments, **named)
        rates = {float(group["lr"]) for group in groups}
        seen.append((named["step"], rates, {group["weight_decay"] for group in groups}, len(batch.labels)))

    monkeypatch.setattr(TrainStep, "__call__", step_and_look)
    changes = {"lr": 0.25, "weight_decay": 0.5, "schedule": "constant", "accumulate": 1}
    resume(folder, changes, allow_changes=True)
    updates = [(size, 0.25) for size in (10, 10, 10, 10, 7)] * 2  # epochs 2 and 3, from their first batch
    assert [(size, *rates) for _, rates, _, size in seen] == updates
    assert [step for step, *_ in seen] == list(range(5, 15))  # five an epoch, now that each batch is an update
    assert all(decays == {0.0, 0.5} for _, _, decays, _ in seen)
    assert sum(row["phase"] == "train" for row in read_rows(folder)) == EPOCHS


def test_a_run_that_crashes_right_after_a_change_is_resumed(stopped, tmp_path):
    folder = copied(stopped, tmp_path)

    def crash(*_, **__):
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainStep, "__call__", crash)
        with pytest.raises(Crash):
            resume(folder, {"batch_size": 8}, allow_changes=True)
    assert resume(folder) == folder
    assert [row["epoch"] for row in read_rows(folder)] == [1, 1, 2, 2, 3, 3]


def settings_that_are(kind):
    return {name for name in TrainConfig.__dataclass_fields__ if option_of(TrainConfig, name).on_resume == kind}


def test_free_changes_pass_and_change_nothing_that_is_learned(straight, stopped, assert_equal_runs, tmp_path):
    free = {
        "preset": "strong_augment",
        "output": str(tmp_path),
        "capture": "off",
        "threads": 2,
        "keep": 4,
        "save_every": None,
        "on_nonfinite": "skip",
        "nonfinite_budget": 3,
        "track": ["tensorboard"],
    }
    assert set(free) | {"epochs", "time_budget"} == settings_that_are(FREE)
    folder = copied(stopped, tmp_path)
    assert resume(folder, free) == folder
    assert {name: to_plain(read_config(folder))[name] for name in free} == free
    assert_equal_runs(folder, straight)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("data", "elsewhere"), ("fold", 1), ("model", "test_vit"), ("weights", "w.safetensors")),
        *(("pretrained", "yes"), ("lineage", "tree.toml"), ("teacher", "elsewhere"), ("views", 3)),
    ],
)
def test_what_a_run_is_made_of_is_refused_even_if_changes_are_allowed(straight, name, value):
    before = files(straight)
    with pytest.raises(HemafastError, match=f"cannot change this .{name}: .*new run"):
        resume(straight, {name: value, "epochs": 9}, allow_changes=True)
    assert files(straight) == before


def test_going_on_takes_the_newest_run_of_the_very_same_settings(settings, signal_at, straight, assert_equal_runs):
    config = settings(**EVERYTHING)
    older = train(config)
    before = files(older)
    with signal_at(4), pytest.raises(StoppedError):
        train(config)
    (newer,) = set(config.output.iterdir()) - {older}
    other = settings(**EVERYTHING | {"output": config.output, "lr": 0.5, "epochs": 1})
    train(other)  # the newest of all, and another run
    assert train(config, go_on=True) == newer
    assert_equal_runs(newer, straight)
    assert train(config, go_on=True) == newer  # finished
    assert files(older) == before


def test_going_on_begins_a_run_where_there_is_none(settings):
    config = settings()
    folder = train(config, go_on=True)
    assert folder.parent == config.output
    assert train(config, go_on=True) == folder
    assert list(config.output.iterdir()) == [folder]


def test_going_on_with_more_epochs_trains_them(settings):
    config = settings()
    train(config)
    longer = settings(output=config.output, epochs=2)
    folder = train(longer, go_on=True)
    assert [row["epoch"] for row in read_rows(folder)] == [1, 1, 2, 2]


def test_going_on_finds_a_run_whose_batch_size_was_found_by_a_trial(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = settings(batch_size="auto", compile="auto")
    folder = train(config, go_on=True)
    assert read_config(folder).batch_size != "auto"
    assert train(config, go_on=True) == folder


def test_data_with_another_fingerprint_is_refused(straight, prepare_again, tmp_path):
    folder = redirected(straight, tmp_path, data=prepare_again(seed=7))
    before = files(folder)
    with pytest.raises(HemafastError, match="not the data the run began with"):
        resume(folder, {"epochs": 4})
    assert files(folder) == before


def test_data_with_other_classes_is_refused(straight, prepare_again, tmp_path):
    folder = redirected(straight, tmp_path, data=prepare_again(classes="from-data"))
    with pytest.raises(HemafastError, match="classes"):
        resume(folder, {"epochs": 4})


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(HemafastError, match="is not a run"):
        resume(tmp_path)
    (tmp_path / "config.json").write_text("{not json", encoding="utf-8")
    with pytest.raises(HemafastError, match="is not a run"):
        resume(tmp_path)


def test_settings_of_another_version_are_refused(straight, tmp_path):
    folder = redirected(straight, tmp_path, a_setting_of_tomorrow=1)
    with pytest.raises(HemafastError, match="a_setting_of_tomorrow"):
        resume(folder, {"epochs": 4})


def test_a_run_without_a_checkpoint_is_refused(straight, tmp_path):
    folder = with_one_checkpoint(straight, tmp_path)
    (folder / LAST).unlink()
    with pytest.raises(HemafastError, match=f"{LAST}.*Start a new run"):
        resume(folder)


@pytest.mark.parametrize("keep", [0, 100, -100], ids=["emptied", "cut to its head", "cut by its tail"])
def test_a_run_whose_only_checkpoint_is_damaged_is_refused(straight, tmp_path, keep):
    folder = with_one_checkpoint(straight, tmp_path)
    (folder / LAST).write_bytes((straight / LAST).read_bytes()[:keep])
    with pytest.raises(HemafastError, match="cannot be read"):
        resume(folder, {"epochs": 4})


class Touch:
    """Creates a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


WRITERS_AND_READERS = {
    "torch": (torch.save, lambda file: torch.load(file, weights_only=False)),
    "pickle": (
        lambda state, file: file.write_bytes(pickle.dumps(state, protocol=2)),
        lambda file: pickle.loads(file.read_bytes()),
    ),
}


@pytest.mark.parametrize(("write", "read"), WRITERS_AND_READERS.values(), ids=WRITERS_AND_READERS)
def test_a_checkpoint_that_would_execute_code_is_refused_and_executes_none(straight, tmp_path, write, read):
    folder, touched = with_one_checkpoint(straight, tmp_path), tmp_path / "touched"
    write(load_last(folder / LAST) | {"started_from": Touch(touched)}, folder / LAST)
    with pytest.raises(HemafastError, match="cannot be read"):
        resume(folder, {"epochs": 4})
    assert not touched.exists()
    read(folder / LAST)
    assert touched.exists()  # a trusting reader would have done it


FOREIGN = {
    "list": [1, 2],
    "other": {"state_dict": {}},
    "half": {"progress": 3},
    "empty": {"progress": {"epochs_done": 1}},
}


@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_a_checkpoint_of_another_program_is_refused(straight, tmp_path, content):
    folder = with_one_checkpoint(straight, tmp_path)
    torch.save(content, folder / LAST)
    with pytest.raises(HemafastError, match="not a checkpoint of this version"):
        resume(folder, {"epochs": 4})


def test_a_checkpoint_of_another_network_is_refused(straight, tmp_path):
    folder = redirected(straight, tmp_path, model="test_efficientnet")
    with pytest.raises(HemafastError, match="does not fit"):
        resume(folder, {"epochs": 4})
