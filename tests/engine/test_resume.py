"""A run that is stopped and resumed is the run that was never stopped."""

import hashlib
import json
import pickle
import shutil
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import timm
import torch

from hemafast.engine import trainer
from hemafast.engine.checkpoint import BEST, LAST, load_best, load_last, save_last
from hemafast.engine.journal import Journal, read_rows
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError

STEPS = 6  # an epoch


@pytest.fixture(autouse=True)
def _dropout(monkeypatch):
    """Networks with dropout, so that a run depends on the state of the random generator."""
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, drop_rate=0.5))


@pytest.fixture(scope="module")
def straight(settings, tmp_path_factory):
    """The finished run of three epochs that was never stopped."""
    from rich.console import Console

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", partial(timm.create_model, drop_rate=0.5))
        return train(thorough(settings), Console(quiet=True))


def thorough(settings, **changes):
    return settings(**({"epochs": 3, "onecycle": True, "weighted_loss": True, "label_smoothing": 0.1} | changes))


def same(first, second) -> bool:
    """Whether two checkpoints hold the same structure and, bit for bit, the same tensors."""
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    return torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


def scores(folder: Path) -> list[dict[str, float]]:
    timed = ("seconds", "per_second", "share")
    return [{name: row[name] for name in row if not name.endswith(timed)} for row in read_rows(folder)]


def assert_equal_runs(first: Path, second: Path) -> None:
    assert scores(first) == scores(second)
    assert same(load_last(first / LAST), load_last(second / LAST))
    (first_model, first_card), (second_model, second_card) = (load_best(folder / BEST) for folder in (first, second))
    assert first_card == second_card
    assert same(first_model.state_dict(), second_model.state_dict())


def files(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target / "run"))


def redirected(folder: Path, target: Path, **changes) -> Path:
    """A copy of a run with other settings in its config.json."""
    copy = copied(folder, target)
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | changes, default=str), encoding="utf-8")
    return copy


@pytest.mark.parametrize("step", [2, STEPS + 3], ids=["in the first epoch", "in the second epoch"])
def test_a_resumed_run_equals_one_never_interrupted(settings, console, straight, interrupted_at, step):
    config = thorough(settings)
    with interrupted_at(step), pytest.raises(StoppedError, match="--resume") as stopped:
        train(config, console)
    assert stopped.value.exit_code == 130
    (folder,) = config.output.iterdir()
    assert len(read_rows(folder)) == (step - 1) // STEPS
    assert resume(folder, console) == folder
    assert_equal_runs(folder, straight)


@pytest.mark.parametrize(
    ("place", "name", "call"),
    [(Journal, "epoch", 2), (trainer, "save_last", 3)],
    ids=["before the row of epoch 2", "between the row and the checkpoint of epoch 2"],
)
def test_a_stop_after_validation_loses_nothing(settings, console, straight, place, name, call):
    config, calls, original = thorough(settings), count(1), getattr(place, name)

    def stop_or_do(*arguments):
        if next(calls) == call:
            raise KeyboardInterrupt
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, stop_or_do)
        with pytest.raises(StoppedError):
            train(config, console)
    (folder,) = config.output.iterdir()
    resume(folder, console)
    assert_equal_runs(folder, straight)


def test_the_random_generator_is_part_of_the_checkpoint(settings, console, straight, interrupted_at):
    config = thorough(settings)
    with interrupted_at(STEPS + 1), pytest.raises(StoppedError):
        train(config, console)
    (folder,) = config.output.iterdir()
    state = load_last(folder / LAST)
    save_last(folder / LAST, state | {"rng": torch.Generator().manual_seed(1).get_state()})
    resume(folder, console)
    assert not same(load_last(folder / LAST)["model"], load_last(straight / LAST)["model"])


def test_resuming_a_finished_run_changes_no_file(console, straight):
    before = files(straight)
    assert resume(straight, console) == straight
    assert resume(straight, console, epochs=2) == straight
    assert files(straight) == before


def test_more_epochs_extend_a_finished_run(settings, console):
    constant = {"epochs": 1, "onecycle": False}
    folder = train(thorough(settings, **constant), console)
    resume(folder, console, epochs=2)
    assert json.loads((folder / "config.json").read_text(encoding="utf-8"))["epochs"] == 2
    assert_equal_runs(folder, train(thorough(settings, **constant | {"epochs": 2}), console))


def test_epochs_out_of_range_are_refused(console, straight):
    with pytest.raises(HemafastError, match="epochs"):
        resume(straight, console, epochs=0)


def test_data_with_another_fingerprint_is_refused(console, straight, prepare_again, tmp_path):
    folder = redirected(straight, tmp_path, data=prepare_again(seed=7))
    before = files(folder)
    with pytest.raises(HemafastError, match="not the data the run began with"):
        resume(folder, console, epochs=4)
    assert files(folder) == before


def test_data_with_other_classes_is_refused(console, straight, prepare_again, tmp_path):
    folder = redirected(straight, tmp_path, data=prepare_again(classes="from-data"))
    with pytest.raises(HemafastError, match="classes"):
        resume(folder, console, epochs=4)


def test_a_folder_that_is_no_run_is_refused(console, tmp_path):
    with pytest.raises(HemafastError, match="is not a run"):
        resume(tmp_path, console)
    (tmp_path / "config.json").write_text("{not json", encoding="utf-8")
    with pytest.raises(HemafastError, match="is not a run"):
        resume(tmp_path, console)


def test_settings_of_another_version_are_refused(console, straight, tmp_path):
    folder = redirected(straight, tmp_path, a_setting_of_tomorrow=1)
    with pytest.raises(HemafastError, match="a_setting_of_tomorrow"):
        resume(folder, console, epochs=4)


def test_a_run_without_a_checkpoint_is_refused(console, straight, tmp_path):
    folder = copied(straight, tmp_path)
    (folder / LAST).unlink()
    with pytest.raises(HemafastError, match=LAST):
        resume(folder, console)


@pytest.mark.parametrize("keep", [0, 100, -100], ids=["emptied", "cut to its head", "cut by its tail"])
def test_a_damaged_checkpoint_is_refused(console, straight, tmp_path, keep):
    folder = copied(straight, tmp_path)
    (folder / LAST).write_bytes((straight / LAST).read_bytes()[:keep])
    with pytest.raises(HemafastError, match="cannot be read"):
        resume(folder, console, epochs=4)


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
def test_a_checkpoint_that_would_execute_code_is_refused_and_executes_none(console, straight, tmp_path, write, read):
    folder, touched = copied(straight, tmp_path), tmp_path / "touched"
    write(load_last(folder / LAST) | {"started_from": Touch(touched)}, folder / LAST)
    with pytest.raises(HemafastError, match="cannot be read"):
        resume(folder, console, epochs=4)
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
def test_a_checkpoint_of_another_program_is_refused(console, straight, tmp_path, content):
    folder = copied(straight, tmp_path)
    torch.save(content, folder / LAST)
    with pytest.raises(HemafastError):
        resume(folder, console, epochs=4)


def test_a_checkpoint_of_another_network_is_refused(console, straight, tmp_path):
    folder = redirected(straight, tmp_path, model="test_efficientnet")
    with pytest.raises(HemafastError, match="does not fit"):
        resume(folder, console, epochs=4)
