"""Weights of strangers and last batches of any size, through to a learner or a whole run."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import timm
import torch
from door import SIDE, Room
from safetensors.torch import save_file

from hemafast.config import PrepareConfig, TrainConfig, checked
from hemafast.data.batch import Batch
from hemafast.engine.journal import read_rows
from hemafast.engine.learner import build_learner
from hemafast.engine.machine import Machine
from hemafast.engine.step import Totals
from hemafast.errors import HemafastError
from hemafast.preparation.build import prepare

CLASSES = 3
CPU = Machine("cpu", "fp32", False, 1, (), {})


def stranger(name="test_resnet", **options) -> dict[str, torch.Tensor]:
    """The weights of another network of this architecture."""
    torch.manual_seed(7)
    return timm.create_model(name, **{"num_classes": 10, **options}).state_dict()


def learner_from(file, model="test_resnet"):
    asked = {"model": model, "weights": file, "image_size": 64, "device": "cpu", "compile": "off"}
    return build_learner(checked(TrainConfig, asked), CPU, np.ones(CLASSES, np.int64), batch_size=2, fuse=False)


@dataclass
class Weights:
    """A file of weights, and what is said of it."""

    content: Any
    said: str
    model: str = "test_resnet"


def _of_lightning():
    return {
        "epoch": 9,
        "pytorch-lightning_version": "2.1",
        "state_dict": {f"net.encoder.{name}": tensor for name, tensor in stranger().items()}
        | {"loss.weight": torch.ones(10)},
        "hyper_parameters": {"lr": 0.1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}],
    }


def _of_data_parallel():
    return {"model": {f"module.{name}": tensor.half() for name, tensor in stranger().items()}, "epoch": 3}


def _grey():
    return stranger(in_chans=1, num_classes=0)


def _of_another_size():
    return stranger("test_vit", img_size=160)


WEIGHTS = {
    "Lightning": Weights(_of_lightning, "stripped state_dict.net.encoder."),
    "DataParallel in half precision": Weights(_of_data_parallel, "stripped model.module."),
    "one channel and no head": Weights(_grey, "adapted from 1 to 3 input channels"),
    "a transformer of another image size": Weights(_of_another_size, "resampled", "test_vit"),
    "an average under names that nobody knows": Weights(
        lambda: {"ema": {"m": stranger()}, "note": "x"}, "stripped ema.m."
    ),
}


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_a_learner_starts_from_weights_of_any_origin_and_learns(tmp_path, weights):
    file = tmp_path / "stranger.ckpt"
    torch.save(weights.content(), file)
    learner = learner_from(file, weights.model)
    assert weights.said in learner.started_from
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    totals = Totals(CLASSES, "cpu")
    learner.train_step(Batch(images, torch.tensor([0, 2]), torch.arange(2)), 1e-3, totals, step=0)
    assert all(tensor.isfinite().all() for tensor in learner.model.state_dict().values())


def test_the_weights_of_a_safetensors_file_are_those_of_the_learner(tmp_path):
    state = {f"backbone.{name}": tensor.contiguous() for name, tensor in stranger().items()}
    save_file(state, tmp_path / "model.safetensors")
    found = learner_from(tmp_path / "model.safetensors").model.backbone.state_dict()
    body = [name for name in found if not name.startswith("fc.") and found[name].dtype == torch.float32]
    assert len(body) > 20
    assert all(torch.equal(found[name], state[f"backbone.{name}"]) for name in body)


@pytest.mark.parametrize(
    "content",
    [b"<!DOCTYPE html><html>Sign in</html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\n", b""],
)
def test_a_file_without_weights_is_refused_by_name(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(HemafastError, match=r"model\.pth"):
        learner_from(tmp_path / "model.pth")


@pytest.mark.parametrize(
    ("images", "batch_size"),
    [(6, 9), (6, 64), (4, 2)],
    ids=["a last batch of one", "a batch larger than the data", "no remainder"],
)
def test_a_run_ends_well_with_any_last_batch(tmp_path, train_on, images, batch_size):
    room = Room(tmp_path)
    room.write(room.classes("basophil", "monocyte", count=images), "Lab")
    data = prepare(PrepareConfig(source=room.source, output=room.output, pack_sizes=(SIDE,), shards=1), workers=1)
    assert data.info.account.train == 2 * images - 2
    folder = train_on(data.folder, epochs=1, batch_size=batch_size, image_size=SIDE)
    rows = read_rows(folder)
    assert [row["phase"] for row in rows] == ["train", "val"]
    assert all(np.isfinite(row["loss"]) for row in rows)
