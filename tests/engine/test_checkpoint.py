"""The two files of a run: whole or absent, and nothing in them is executed."""

import json
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from hemafast.engine import checkpoint
from hemafast.engine.checkpoint import ModelCard, load_best, load_last, save_best, save_last
from hemafast.errors import HemafastError
from hemafast.model import build_model

CARD = ModelCard(
    backbone="test_efficientnet",
    classes=("basophil", "<b>", "größe"),
    image_size=32,
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


def test_the_file_tells_any_reader_of_safetensors_what_it_is(best, model):
    with safe_open(best, framework="pt") as content:
        metadata, names = content.metadata(), set(content.keys())
    assert json.loads(metadata["card"])["classes"] == list(CARD.classes)
    assert metadata["mean"] == str(model.mean)
    assert names == set(model.state_dict())


def test_others_may_read_the_files(best, tmp_path):
    save_last(tmp_path / "last_model.ckpt", {})
    for file in (best, tmp_path / "last_model.ckpt"):
        assert stat.S_IMODE(file.stat().st_mode) == 0o644


@pytest.mark.parametrize("failing", ["writing", "flushing"])
def test_a_write_that_fails_leaves_the_old_file_whole_and_no_litter(best, model, monkeypatch, failing):
    before = best.read_bytes()

    def disk_full(*arguments):
        if failing == "writing":
            Path(arguments[1]).write_bytes(before[:99])
        raise OSError(28, "No space left on device")

    target, name = (checkpoint, "save_file") if failing == "writing" else (checkpoint.os, "fsync")
    monkeypatch.setattr(target, name, disk_full)
    with pytest.raises(OSError, match="No space left"):
        save_best(best, model, CARD)
    assert best.read_bytes() == before
    assert list(best.parent.iterdir()) == [best]


def test_a_state_comes_back_as_it_was(tmp_path):
    state = {
        "progress": {"best_f1": 0.1},
        "rng": torch.get_rng_state(),
        "classes": ["a"],
        "model": {"w": torch.ones(2)},
    }
    save_last(tmp_path / "last", state)
    loaded = load_last(tmp_path / "last")
    assert loaded["progress"] == state["progress"]
    assert torch.equal(loaded["rng"], state["rng"])
    assert list(tmp_path.iterdir()) == [tmp_path / "last"]


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
    fields = {name: getattr(CARD, name) for name in CARD.__slots__} | {"backbone": "no_such_network"}
    save_best(tmp_path / "best", model, ModelCard(**fields))
    with pytest.raises(HemafastError, match="no_such_network"):
        load_best(tmp_path / "best")


def test_a_state_that_is_no_dictionary_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "last")
    with pytest.raises(HemafastError, match="not a checkpoint"):
        load_last(tmp_path / "last")


def test_a_state_that_is_not_there_says_to_start_anew(tmp_path):
    with pytest.raises(HemafastError, match="start anew"):
        load_last(tmp_path / "last")
