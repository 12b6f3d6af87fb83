"""Pretraining runs on a GPU: each method learns, goes on where it was stopped, and its encoder is a start."""

from typing import get_args

import pytest
import torch
from safetensors.torch import load_file

from hemafast.config import Method
from hemafast.engine.checkpoint import load_best, load_last
from hemafast.engine.journal import column, read_rows
from hemafast.engine.trainer import resume, train
from hemafast.run_folder import BEST, ENCODER, LAST

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # Inductor and cuDNN advise according to the device
]

METHODS = get_args(Method)
VIEWS = {"batch_size": 16, "policy": "robust", "crop_area": (0.3, 1.0), "background": 0.0, "clip_grad": 1.0}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amp", ["off", "auto"])
def test_each_method_learns_and_scores_its_features(settings, method, amp):
    folder = train(settings(method=method, amp=amp, views=3, **VIEWS))
    rows = read_rows(folder)
    assert column(rows, "train", "bad_updates") == [0, 0]
    assert all(0 < spread <= 1 for spread in column(rows, "val", "feature_spread"))
    assert all(0 <= share <= 1 for share in column(rows, "val", "knn_accuracy"))
    assert all(tensor.isfinite().all() for tensor in load_file(folder / ENCODER).values())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_is_the_straight_one(settings, stopped_behind, method):
    asked = {"method": method, **VIEWS}
    folder = stopped_behind(2, settings(**asked))
    assert load_last(folder / LAST)["progress"]["epochs_done"] == 0
    resume(folder)
    straight = train(settings(**asked, output=folder.parent.parent / "straight"))
    first, second = read_rows(folder), read_rows(straight)
    assert [(row["epoch"], row["phase"]) for row in first] == [(row["epoch"], row["phase"]) for row in second]
    # Sums on a GPU may be taken in another order from run to run: close, not equal.
    assert column(first, "train", "loss") == pytest.approx(column(second, "train", "loss"), rel=1e-3)


def test_training_starts_from_its_encoder(settings, tmp_path):
    encoder = train(settings(method="simclr", epochs=1, **VIEWS))
    folder = train(settings(weights=encoder, lr=1e-12, epochs=1, output=tmp_path / "classified"))
    model, card = load_best(folder / BEST)
    assert "filled 100 %" in card.started_from
    kept = load_file(encoder / ENCODER)
    for name, parameter in model.named_parameters():
        assert "fc" in name or torch.allclose(parameter, kept[name], atol=1e-6), name


@pytest.mark.slow
def test_a_compiled_run_is_the_run_as_it_is(settings):
    torch._dynamo.reset()
    plain, compiled = (train(settings(method="simclr", compile=mode, **VIEWS)) for mode in ("off", "on"))
    losses = [column(read_rows(folder), "train", "loss") for folder in (compiled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # products may run in TF32
