"""Runs on a GPU: trained, resumed, scored and timed."""

import json
from contextlib import contextmanager
from typing import get_args

import pytest
import torch
import two_processes

from hemafast.bench.run import run_bench
from hemafast.bench.settings import Bench, bench_settings
from hemafast.bench.stations import groups
from hemafast.config import CompileMode, to_json
from hemafast.engine import machine
from hemafast.engine.checkpoint import load_last
from hemafast.engine.journal import column, read_rows
from hemafast.engine.trainer import resume, train
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.nvidia import read_card, uses_gpu
from hemafast.run_folder import BEST, LAST, read_config

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # Inductor and cuDNN advise according to the device
]

EVERYTHING = {
    "mixup": 0.4,
    "cutmix": 0.4,
    "clip_grad": 1.0,
    "ema": 0.9,
    "loss": "weighted",
    "label_smoothing": 0.1,
    "dropout": 0.2,
    "layer_decay": 0.8,
    "schedule": "onecycle",
    "on_nonfinite": "skip",
    "accumulate": 2,
}


@pytest.fixture(autouse=True)
def _own_trials(monkeypatch, tmp_path):
    """What trials find is of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def trained(config):
    return train(config)


def losses_of(folder, phase="train"):
    return column(read_rows(folder), phase, "loss")


@pytest.mark.parametrize("kind", ["auto", "resident", "packed", "files"])
def test_a_run_with_every_default_trains(settings, kind):
    losses = losses_of(trained(settings(amp="auto", input=kind)))
    assert len(losses) == 2
    assert losses[1] < losses[0]


@pytest.mark.parametrize("amp", ["off", "fp16", "auto"])
def test_a_run_with_everything_on_trains(settings, amp):
    rows = read_rows(trained(settings(amp=amp, **EVERYTHING)))
    assert column(rows, "train", "bad_updates") == [0, 0]
    assert all(0 < loss < 10 for loss in column(rows, "train", "loss"))


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(CompileMode))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_compiled_run_is_the_run_as_it_is(settings, caplog, mode, accumulate):
    torch._dynamo.reset()
    asked = {"model": "test_vit", "image_size": 64, "dropout": 0.0, "accumulate": accumulate, "lr": 1e-4}
    plain = trained(settings(**asked))
    caplog.clear()
    compiled = trained(settings(**asked, compile="on", compile_mode=mode))
    assert losses_of(compiled) == pytest.approx(losses_of(plain), rel=1e-2)  # products may run in TF32
    assert losses_of(compiled, "val") == pytest.approx(losses_of(plain, "val"), rel=1e-2)
    assert "compiled the training step" in caplog.text
    assert "compiled again" not in caplog.text


@pytest.mark.slow
def test_a_compiled_run_with_every_default_is_scored(settings):
    torch._dynamo.reset()
    folder = trained(settings(amp="auto", compile="on"))
    metrics = evaluate_run(folder)
    rows = [row for row in read_rows(folder) if row["phase"] == "val"]
    (kept,) = (row for row in rows if row["epoch"] == metrics["model"]["epoch"])
    assert metrics["pooled"]["log_loss"] == pytest.approx(kept["loss"], rel=0.05)


def test_the_knee_of_the_throughput_is_found_and_kept(settings):
    first, again = (trained(settings(batch_size="auto", epochs=1)) for _ in range(2))
    size = read_config(first).batch_size
    assert size == 8  # of 47 images
    assert read_config(again).batch_size == size
    choices = [json.loads((folder / "machine.json").read_text())["choices"] for folder in (first, again)]
    reasons = [{choice["name"]: choice["reason"] for choice in of_run}["batch size"] for of_run in choices]
    assert "within 5 % of the fastest" in reasons[0]
    assert "found before" in reasons[1]


def test_a_short_budget_is_not_spent_on_compiling(settings):
    folder = trained(settings(time_budget=20.0, compile="auto"))
    choices = json.loads((folder / "machine.json").read_text())["choices"]
    assert {choice["name"]: choice["value"] for choice in choices}["torch.compile"] == "off"


@pytest.fixture
def older_card(monkeypatch):
    """`with older_card():` this card, which has bf16, says that it has none."""
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this card has no bf16")

    @contextmanager
    def pretend():
        with monkeypatch.context() as patch:
            patch.setattr(machine, "_fast_precision", lambda device: ("fp16", "as an older card"))
            yield

    return pretend


def test_a_run_goes_on_in_fp16_on_an_older_card(settings, stopped_behind, older_card, caplog):
    folder = stopped_behind(8, settings(amp="auto"))
    assert load_last(folder / LAST)["precision"] == "bf16"
    with older_card():
        resume(folder)
    assert "the run began in bf16; this card trains in fp16 with scaled gradients" in caplog.text
    assert load_last(folder / LAST)["scaler"]


def test_a_run_of_an_older_card_keeps_its_precision_and_scale(settings, stopped_behind, older_card):
    with older_card():
        folder = stopped_behind(8, settings(amp="auto"))
    resume(folder)
    state = load_last(folder / LAST)
    assert (state["precision"], bool(state["scaler"])) == ("fp16", True)


def test_torch_has_kernels_for_this_card():
    assert uses_gpu("auto")
    assert read_card().supported


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_run_that_is_resumed_in_the_middle_of_an_epoch_is_the_straight_one(settings, stopped_behind, amp):
    """Dropout and mixing draw on the GPU: each batch seeds them, so that nothing of its generator is saved."""
    asked = {**EVERYTHING, "model": "test_vit", "image_size": 64, "amp": amp, "accumulate": 1}
    folder = stopped_behind(8, settings(**asked))
    state = load_last(folder / LAST)
    assert state["progress"]["epochs_done"] == 1
    assert bool(state["scaler"]) == (amp == "fp16")
    resume(folder)
    straight = trained(settings(**asked, output=folder.parent.parent / "straight"))
    first, second = read_rows(folder), read_rows(straight)
    assert [(row["epoch"], row["phase"]) for row in first] == [(row["epoch"], row["phase"]) for row in second]
    assert column(first, "train", "lr") == column(second, "train", "lr")
    # Sums on a GPU may be taken in another order from run to run: close, not equal.
    for phase in ("train", "val"):
        assert column(first, phase, "loss") == pytest.approx(column(second, phase, "loss"), rel=1e-3)


def test_a_model_trained_on_the_gpu_scores_alike_on_the_cpu(settings):
    folder = trained(settings())
    gpu, cpu = (evaluate_run(folder, device=device) for device in ("cuda", "cpu"))
    assert gpu["pooled"]["log_loss"] == pytest.approx(cpu["pooled"]["log_loss"], rel=0.05)
    assert gpu["pooled"]["images"] == cpu["pooled"]["images"]


def test_batch_norm_over_the_processes_of_a_run_alone_is_plain_batch_norm(settings, tmp_path):
    plain = trained(settings())
    alone = trained(settings(sync_norm=True, output=tmp_path / "synchronised"))
    assert losses_of(alone) == pytest.approx(losses_of(plain), rel=1e-2)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() != 1, reason="needs exactly one CUDA device")
def test_two_processes_do_not_share_a_gpu(settings, tmp_path):
    done = torchrun_on(settings(), tmp_path)
    assert done.returncode != 0
    assert "2 processes share 1 GPU here." in done.stderr


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_two_gpus_train_as_one_with_batches_twice_as_large(settings, tmp_path, amp):
    """Batch norm over both, so that its statistics are those of the larger batch."""
    asked = {"amp": amp, "lr": 1e-4, "policy": "basic", "accumulate": 2, "clip_grad": 1.0, "loss": "weighted"}
    config = settings(**asked, batch_size=4, sync_norm=True, output=tmp_path / "two")
    done = torchrun_on(config, tmp_path)
    assert done.returncode == 0, done.stderr
    (best,) = config.output.glob(f"*/{BEST}")
    alone = trained(settings(**asked, batch_size=8))
    for phase in ("train", "val"):
        assert losses_of(best.parent, phase) == pytest.approx(losses_of(alone, phase), rel=2e-2)


def torchrun_on(config, folder):
    file = folder / "asked.json"
    file.write_text(to_json(config), encoding="utf-8")
    return two_processes.torchrun("-m", "hemafast", "train", "--config", file)


@pytest.mark.slow
def test_every_station_of_the_bench_runs_on_the_gpu(prepared):
    settings = bench_settings(
        data=prepared.folder,
        model="test_resnet",
        image_size=56,
        batch_size=8,
        threads=2,
        device="cuda",
        compile="off",
    )
    result = run_bench(Bench(settings, loader_batch_size=8), rounds=3, seconds=0.1)
    assert set(result["stations"]) == {name for group in groups("cuda", peers=True) for name in group.makes}
    assert all(station["images_per_second"]["min"] > 0 for station in result["stations"].values())
    assert result["machine"]["device"] == "cuda"
