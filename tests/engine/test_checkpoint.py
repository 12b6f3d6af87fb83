"""The two files of a run: whole or absent, and nothing in them is executed."""

import json
import logging
import os
import random
import re
import stat
import time
from dataclasses import replace
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path

import forked
import pytest
import torch
from power_cut import PowerCut, moments, power_cut
from safetensors import safe_open
from safetensors.torch import save_file

from hemafast.engine.checkpoint import (
    Calibration,
    ModelCard,
    View,
    load_best,
    load_last,
    read_card,
    save_best,
    save_calibration,
    save_last,
)
from hemafast.errors import HemafastError
from hemafast.model import build_model

CARD = ModelCard(
    backbone="test_efficientnet",
    classes=("basophil", "<b>", "größe"),
    image_size=32,
    view=View(packed_size=64, field_of_view=25.0, um_per_pixel={"Acevedo_20": 0.1, "größe": None}),
    domains=("Acevedo_20",),
    epoch=3,
    started_from="random weights, as asked for",
    data_fingerprint="ab" * 32,
    drawn_data=True,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model(CARD.backbone, len(CARD.classes), CARD.image_size).eval()


@pytest.fixture
def best(tmp_path, model):
    save_best(tmp_path / "best_model.safetensors", model, CARD)
    return tmp_path / "best_model.safetensors"


def test_the_best_model_comes_back_from_its_file_alone(best, model):
    loaded, card = load_best(best)
    assert card == CARD
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(loaded.eval()(images), model(images))


CALIBRATION = Calibration(temperature=1.7, threshold=None, target=0.95, images=30)


def test_a_calibration_lies_beside_the_model_and_leaves_its_file_alone(best):
    before = best.read_bytes()
    save_calibration(best, CARD, CALIBRATION)
    assert best.read_bytes() == before
    assert {path.name for path in best.parent.iterdir()} == {best.name, "calibration.json"}
    assert load_best(best)[1] == read_card(best) == replace(CARD, calibration=CALIBRATION)


def test_a_calibration_that_was_written_before_there_were_sizes_of_nuclei_is_read(best):
    save_calibration(best, CARD, CALIBRATION)
    file = best.with_name("calibration.json")
    text = file.read_text(encoding="utf-8")
    older = re.sub(r',\s*"nuclei": null', "", text)
    assert older != text
    file.write_text(older, encoding="utf-8")
    assert read_card(best).calibration == CALIBRATION


def test_a_calibration_on_the_card_of_an_older_run_counts_until_there_is_a_file(tmp_path, model):
    file = tmp_path / "best_model.safetensors"
    old = replace(CARD, calibration=replace(CALIBRATION, temperature=2.5))
    save_best(file, model, old)
    assert read_card(file) == old
    save_calibration(file, old, CALIBRATION)
    assert read_card(file).calibration == CALIBRATION


@pytest.mark.parametrize("other", [{"epoch": 2}, {"data_fingerprint": "cd" * 32}])
def test_a_calibration_of_other_weights_is_ignored_and_said_so(best, other, caplog):
    save_calibration(best, replace(CARD, **other), CALIBRATION)
    assert read_card(best) == CARD
    assert "calibration.json ignored" in caplog.text
    assert "hemafast evaluate" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: "", "EOF"),
        (lambda text: text[:-20], "EOF"),
        (lambda text: "[" * 100_000, "nests more than"),
        (lambda text: "[]", "object"),
        (lambda text: text.replace('"epoch": 3', '"epoch": "many"'), "epoch"),
        (lambda text: text.replace("1.7", "0"), "temperature"),
        (lambda text: text.replace("1.7", "NaN"), "temperature"),
        (lambda text: text.replace('"nuclei": null', '"nuclei": [9.5]'), "1 nuclei for"),
        (lambda text: text.replace('"nuclei": null', '"nuclei": [-1.0]'), "nuclei"),
        (lambda text: text.replace('"epoch"', '"era": 1, "epoch"'), "era"),
    ],
)
def test_a_damaged_calibration_is_refused_with_file_problem_and_remedy(best, change, words):
    save_calibration(best, CARD, CALIBRATION)
    file = best.with_name("calibration.json")
    text = file.read_text(encoding="utf-8")
    assert change(text) != text
    file.write_text(change(text), encoding="utf-8")
    for read in (read_card, load_best):
        with pytest.raises(HemafastError, match=rf"calibration\.json cannot be read .*{words}.*Delete it.*hemafast ev"):
            read(best)


def test_a_folder_in_the_place_of_a_calibration_is_refused(best):
    best.with_name("calibration.json").mkdir()
    with pytest.raises(HemafastError, match=r"calibration\.json cannot be read"):
        read_card(best)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_size", 10**9),
        ("classes", []),
        ("epoch", "many"),
        ("calibration", {"temperature": -1}),
        ("surprise", 1),
        ("home", {"counts": [1, 2]}),
        ("home", {"counts": [1, 2, 3], "white_point": [1, 2, 300]}),
    ],
)
def test_a_card_that_makes_no_sense_is_refused_by_the_name_of_its_field(best, field, value):
    with safe_open(best, framework="pt") as content:
        metadata = content.metadata()
        tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - not a dict
    card = json.loads(metadata["card"]) | {field: value}
    save_file(tensors, best, metadata | {"card": json.dumps(card)})
    with pytest.raises(HemafastError, match=field):
        load_best(best)


def test_the_file_tells_any_reader_of_safetensors_what_it_is(best, model):
    with safe_open(best, framework="pt") as content:
        metadata, names = content.metadata(), set(content.keys())
    assert json.loads(metadata["card"])["classes"] == list(CARD.classes)
    assert metadata["mean"] == str(model.mean)
    assert names == set(model.state_dict())


def test_weights_that_were_overwritten_in_place_are_refused(best):
    flip(best, best.stat().st_size - 5)
    with pytest.raises(HemafastError, match="its weights were overwritten"):
        load_best(best)


def test_others_may_read_the_files(best, tmp_path):
    save_last(tmp_path / "last_model.ckpt", {})
    for file in (best, tmp_path / "last_model.ckpt"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("failing", ["writing", "flushing"])
def test_a_write_that_fails_leaves_the_old_file_whole_and_no_litter(best, model, monkeypatch, failing):
    before = best.read_bytes()

    write_bytes = Path.write_bytes

    def disk_full(*arguments):
        if failing == "writing":
            write_bytes(arguments[0], before[:99])
        raise OSError(28, "No space left on device")

    target, name = (Path, "write_bytes") if failing == "writing" else (os, "fsync")
    monkeypatch.setattr(target, name, disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_best(best, model, CARD)
    assert best.read_bytes() == before
    assert list(best.parent.iterdir()) == [best]


def state_of(number: int, size: int = 16) -> dict:
    return {"number": number, "model": {"w": torch.full((size,), number, dtype=torch.int64)}}


def numbers(file: Path) -> list[int]:
    """Which states lie in the folder of `file`, newest first; each of them is whole."""
    states = [load_last(path) for path in sorted(file.parent.glob(f"{file.name}*"))]
    assert all((state["model"]["w"] == state["number"]).all() for state in states)
    return [state["number"] for state in states]


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 0x10
    file.unlink()  # it may be a hard link
    file.write_bytes(content)


def test_a_state_comes_back_as_it_was(tmp_path, same):
    state = {
        "progress": {"best_f1": 0.1, "steps_done": 3},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "classes": ["a", "größe"],
        "ema": {},
        "compiled": False,
        "model": {"w": torch.rand(2), "counted": torch.tensor(7)},
    }
    save_last(tmp_path / "last", state)
    loaded = load_last(tmp_path / "last")
    loaded.pop("format")
    assert same(loaded, state)
    assert list(tmp_path.iterdir()) == [tmp_path / "last"]


@pytest.mark.parametrize("keep", [1, 2, 3, 12])
def test_so_many_states_are_kept_and_the_newest_is_first(tmp_path, keep):
    for number in range(1, 16):
        save_last(tmp_path / "last", state_of(number), keep=keep)
        kept = [f"last.{older}" for older in range(1, min(number, keep))]
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["last", *kept])
        found = [load_last(tmp_path / name)["number"] for name in ("last", *kept)]
        assert found == list(range(number, number - len(found), -1))


def test_to_keep_fewer_removes_the_oldest(tmp_path):
    for number in range(5):
        save_last(tmp_path / "last", state_of(number), keep=5)
    save_last(tmp_path / "last", state_of(5), keep=2)
    assert numbers(tmp_path / "last") == [5, 4]


def test_a_flipped_bit_anywhere_in_a_tensor_is_noticed_and_the_state_before_is_taken(tmp_path, caplog):
    file = tmp_path / "last"
    for number in (1, 2):
        save_last(file, state_of(number), keep=2)
    tensor = torch.full((16,), 2, dtype=torch.int64).numpy().tobytes()
    whole = file.read_bytes()
    assert whole.count(tensor) == 1
    for place in range(whole.index(tensor), whole.index(tensor) + len(tensor)):
        flip(file, place)
        caplog.clear()
        assert load_last(file)["number"] == 1
        assert [(record.levelno, record.args) for record in caplog.records] == [
            (logging.WARNING, (f"{file} cannot be read (.last/data/0 is damaged).",))
        ]
        file.write_bytes(whole)
    assert load_last(file)["number"] == 2


def test_a_flipped_bit_anywhere_in_the_file_is_noticed_or_changes_nothing(tmp_path, same):
    file = tmp_path / "last"
    save_last(file, state_of(2))
    whole, state = file.read_bytes(), load_last(file)
    noticed = 0
    for place in range(len(whole)):
        flip(file, place)
        try:
            assert same(load_last(file), state)
        except HemafastError:
            noticed += 1
        file.write_bytes(whole)
    assert noticed > len(whole) / 2


def test_if_every_state_is_damaged_the_newest_is_named(tmp_path):
    for number in range(3):
        save_last(tmp_path / "last", state_of(number), keep=3)
    for path in list(tmp_path.iterdir()):
        flip(path, path.stat().st_size // 2)
    with pytest.raises(HemafastError, match=r"/last cannot be read .*Start a new run"):
        load_last(tmp_path / "last")


def test_a_state_without_its_newest_file_is_the_one_before(tmp_path):
    for number in range(3):
        save_last(tmp_path / "last", state_of(number), keep=3)
    (tmp_path / "last").unlink()
    assert load_last(tmp_path / "last")["number"] == 1


@pytest.mark.parametrize("keep", [1, 2, 3, 4])
def test_a_power_cut_at_any_moment_of_saving_loses_no_state(tmp_path, keep):
    for moment in moments():
        file = tmp_path / f"{moment}" / "last"
        file.parent.mkdir()
        for number in range(5):
            save_last(file, state_of(number), keep=keep)
        try:
            with power_cut(moment):
                save_last(file, state_of(5), keep=keep)
        except PowerCut:
            assert set(numbers(file)) >= set(range(5 - keep + 1, 5))
            assert load_last(file)["number"] in (4, 5)
            assert len(list(file.parent.iterdir())) <= keep + 1  # and what was being written
        else:
            break
        newest = load_last(file)["number"]
        save_last(file, state_of(6), keep=keep)
        assert numbers(file) == [6, *range(newest, newest - keep + 1, -1)]
        assert len(list(file.parent.iterdir())) == keep
    assert moment > keep


def save_without_end(file: Path, first: int, saved: Connection) -> None:
    for number in count(first):
        save_last(file, state_of(number, size=400_000), keep=3)  # 3 MB
        saved.send(number)


@pytest.mark.slow
def test_a_process_killed_at_any_moment_leaves_the_last_state_that_was_saved_or_the_one_after_it(tmp_path):
    file, draw, reported = tmp_path / "last", random.Random(0), -1
    context, parts = forked.context(), set()
    for _ in range(20):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=save_without_end, args=(file, reported + 2, theirs), daemon=True)
        process.start()
        theirs.close()
        assert ours.poll(60)
        time.sleep(draw.uniform(0, 0.1))  # the moment: a state takes some hundredths of a second
        process.kill()
        process.join()
        with pytest.raises(EOFError):
            while True:
                reported = ours.recv()
        ours.close()
        assert load_last(file)["number"] in (reported, reported + 1)
        assert numbers(file) == sorted(numbers(file), reverse=True)
        names = {path.name for path in tmp_path.iterdir()}
        parts |= names - {"last", "last.1", "last.2"}
        assert names <= {"last", "last.1", "last.2", ".last.part"}
    assert parts == {".last.part"}  # it was hit in the midst of writing
    save_last(file, state_of(reported + 2, size=400_000), keep=3)
    assert {path.name for path in tmp_path.iterdir()} == {"last", "last.1", "last.2"}


def tensors_without_card(file: Path) -> None:
    save_file({"weight": torch.ones(2)}, file)


def card_of_another_program(file: Path) -> None:
    save_file({"weight": torch.ones(2)}, file, {"card": json.dumps({"name": "other"})})


def card_that_is_no_object(file: Path) -> None:
    save_file({"weight": torch.ones(2)}, file, {"card": "[1]"})


def card_with_other_tensors(file: Path) -> None:
    with safe_open(file, framework="pt") as content:
        metadata = content.metadata()
    save_file({"weight": torch.ones(2)}, file, metadata)


def pickled(file: Path) -> None:
    torch.save({"weight": torch.ones(2)}, file)


DAMAGE = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "header cut": lambda file: file.write_bytes(file.read_bytes()[:20]),
    "text": lambda file: file.write_text("weights", encoding="utf-8"),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pickle": pickled,
    "without card": tensors_without_card,
    "another card": card_of_another_program,
    "a card that is no object": card_that_is_no_object,
    "other tensors": card_with_other_tensors,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_best_model_that_is_damaged_or_foreign_is_refused(best, damage):
    damage(best)
    with pytest.raises(HemafastError, match="best_model"):
        load_best(best)


def test_a_best_model_of_an_unknown_network_is_refused(tmp_path, model):
    save_best(tmp_path / "best", model, replace(CARD, backbone="no_such_network"))
    with pytest.raises(HemafastError, match="no_such_network"):
        load_best(tmp_path / "best")


def test_a_state_that_is_no_dictionary_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "last")
    with pytest.raises(HemafastError, match="not a checkpoint"):
        load_last(tmp_path / "last")


def test_a_state_that_is_not_there_says_to_start_anew(tmp_path):
    with pytest.raises(HemafastError, match="Start a new run"):
        load_last(tmp_path / "last")
