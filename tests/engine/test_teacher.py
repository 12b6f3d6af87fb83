"""A run learns from the answers of a trained model; a resumed run does so from the same file."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import hemafast
from hemafast.config import TrainConfig, checked, located, to_json, to_plain
from hemafast.data.batch import Batch
from hemafast.deploy.combine import combine_runs
from hemafast.engine import step as module
from hemafast.engine.checkpoint import load_best, load_last, save_best
from hemafast.engine.machine import choose_machine
from hemafast.engine.opening import newest_run
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import TrainStep
from hemafast.engine.teacher import Teacher, open_teacher
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.files import write_text
from hemafast.objective import CrossEntropy
from hemafast.run_folder import BEST, CONFIG, LAST, read_config


@pytest.fixture(scope="module")
def machine():
    return choose_machine(device="cpu", amp="off", compiled="off")


def images(count=6, side=56):
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8)


def test_targets_are_shares_between_label_and_answer(trained, machine):
    network, card = load_best(trained / BEST)
    teacher = Teacher(network, card, card.classes, machine, 0.25)
    pixels, labels = images(), torch.arange(6) % len(card.classes)
    found = teacher(pixels, labels)
    answers = (network(pixels) / card.temperature).softmax(1)
    torch.testing.assert_close(found, 0.75 * torch.eye(len(card.classes))[labels] + 0.25 * answers)
    torch.testing.assert_close(found.sum(1), torch.ones(6))
    assert not found.requires_grad
    mixed = torch.full((6, len(card.classes)), 1 / len(card.classes))
    torch.testing.assert_close(teacher(pixels.float(), mixed), 0.75 * mixed + 0.25 * answers)


def test_classes_are_found_by_name_and_images_by_size(trained, machine):
    network, card = load_best(trained / BEST)
    turned = tuple(reversed(card.classes))
    pixels, labels = images(side=40), torch.zeros(6, dtype=torch.int64)
    ours, theirs = (Teacher(network, card, classes, machine, 1.0)(pixels, labels) for classes in (card.classes, turned))
    torch.testing.assert_close(ours, theirs.flip(1))


def test_an_ensemble_teaches_the_mean_of_its_members(trained, settings, machine, tmp_path):
    other = train(settings(seed=5, image_size=48))
    made = combine_runs([trained, other], output=tmp_path, device="cpu").folder
    network, card = load_best(made / BEST)
    teacher, pixels = Teacher(network, card, card.classes, machine, 1.0), images()
    each = [network.opinion(place, pixels)[0] for place in (0, 1)]
    torch.testing.assert_close(teacher(pixels, torch.zeros(6, dtype=torch.int64)), torch.stack(each).mean(0))
    student = train(settings(teacher=made, image_size=40))
    assert evaluate_run(student)["training"]["teacher"]["model"] == str(made)
    assert not load_best(student / BEST)[1].members


@pytest.mark.parametrize(
    "more", [{}, {"mixup": 0.2}, {"loss": "logit-adjusted", "label_smoothing": 0.1}, {"accumulate": 2}]
)
def test_a_stopped_run_resumes_to_the_same_student(settings, trained, more, signal_at, assert_equal_runs):
    config = settings(teacher=trained, epochs=2, image_size=48, **more)
    straight, begun = train(config), replace(config, output=config.output / "stopped")
    with signal_at(3), pytest.raises(StoppedError):
        train(begun)
    (folder,) = begun.output.iterdir()
    resume(folder)
    assert_equal_runs(straight, folder)


def test_a_teacher_changes_what_is_learned(settings, trained):
    alone, taught = (train(settings(**more)) for more in ({}, {"teacher": trained}))
    one, other = (load_last(run / LAST)["model"] for run in (alone, taught))
    assert any(not torch.equal(one[name], other[name]) for name in one)
    metrics = evaluate_run(taught)
    assert metrics["training"]["teacher"] == {"model": str(trained), "weight": 0.5, "macro_f1": None}
    assert evaluate_run(alone)["training"]["teacher"] is None


def test_what_a_run_reads_may_be_named_by_any_path_on_resume(settings, trained, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to(trained)
    tree = tmp_path / "tree.toml"
    shutil.copyfile(Path(hemafast.__file__).with_name("lineage.toml"), tree)
    monkeypatch.chdir(tmp_path)
    asked = settings(teacher="link", weights=trained / BEST, lineage="tree.toml")
    folder = train(asked)
    kept = read_config(folder)
    assert (kept.teacher, kept.lineage) == (tmp_path / "link", tree)
    assert newest_run(checked(TrainConfig, located(to_plain(asked)))) == folder
    monkeypatch.chdir("here")
    changes = {
        "teacher": "../link",
        "weights": str(trained / BEST),
        "lineage": Path("../tree.toml"),
        "data": asked.data,
    }
    assert resume(folder, changes | {"teacher": trained}) == folder
    assert resume(folder, changes) == folder
    with pytest.raises(HemafastError, match=r"teacher: .*link -> .*here/link"):
        resume(folder, {"teacher": "link"})


def test_another_file_in_its_place_is_refused_on_resume(settings, trained, tmp_path, signal_at):
    teacher = tmp_path / BEST
    shutil.copyfile(trained / BEST, teacher)
    config = settings(teacher=teacher)
    with signal_at(2), pytest.raises(StoppedError):
        train(config)
    network, card = load_best(teacher)
    save_best(teacher, network, replace(card, epoch=9))
    with pytest.raises(HemafastError, match="not the teacher that the run began with"):
        resume(max(config.output.iterdir()))


def test_a_strange_teacher_is_refused_before_trials_and_before_anything_is_written(
    settings, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("hemafast.engine.plan.decide", lambda config, *_: pytest.fail("a trial was made"))
    network, card = load_best(trained / BEST)
    odd = {
        "other classes .*smudge": {"classes": (*card.classes[:-1], "smudge")},
        "another part of an image": {"view": replace(card.view, field_of_view=10.0)},
    }
    for said, fields in odd.items():
        save_best(tmp_path / BEST, network, replace(card, home=None, **fields))
        config = settings(teacher=tmp_path)
        with pytest.raises(HemafastError, match=said):
            train(config)
        assert not [*config.output.iterdir()]
    with pytest.raises(HemafastError, match="There is no"):
        train(settings(teacher=tmp_path / "nowhere"))
    monkeypatch.undo()
    with pytest.raises(HemafastError, match="does not standardize"):
        train(settings(teacher=trained, standardize=True))


def test_doubts_about_the_scores_are_warned_of(settings, trained, tmp_path, dataset, machine):
    network, card = load_best(trained / BEST)
    save_best(tmp_path / BEST, network, replace(card, data_fingerprint="0" * 64))
    assert "other data" in open_teacher(settings(teacher=tmp_path), dataset, machine).warnings[0]
    folded = Path(shutil.copytree(trained, tmp_path / "folded"))
    write_text(folded / CONFIG, to_json(replace(read_config(trained), fold=1)))
    assert "validation images of this run" in open_teacher(settings(teacher=folded), dataset, machine).warnings[0]
    assert not open_teacher(settings(teacher=trained), dataset, machine).warnings


def test_a_step_asks_the_teacher_once_about_the_mixed_images(trained, machine, monkeypatch):
    network, card = load_best(trained / BEST)
    asked = []

    class Asked(Teacher):
        def __call__(self, images, targets):
            asked.append((images.dtype, targets.ndim))
            return super().__call__(images, targets)

    classes = len(card.classes)
    student = load_best(trained / BEST)[0]
    step = TrainStep(
        student,
        CrossEntropy(),
        build_optimizer(student, weight_decay=0.0, layer_decay=None, device="cpu"),
        machine,
        teacher=Asked(network, card, card.classes, machine, 0.5),
        mix=module.Mix(classes, mixup=1.0, cutmix=0.0),
    )
    batch = Batch(images(), torch.zeros(6, dtype=torch.int64), torch.arange(6))
    step(batch, 0.1, module.Totals(classes, "cpu"), step=0)
    assert asked == [(torch.float32, 2)]
