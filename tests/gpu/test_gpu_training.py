"""Training, resuming, scoring and timing on a GPU."""

import time

import pytest
import torch
from rich.console import Console

from hemafast.bench.run import run_bench
from hemafast.bench.stations import STATIONS, Bench
from hemafast.data.loader import Batch
from hemafast.engine.checkpoint import load_last
from hemafast.engine.journal import read_rows
from hemafast.engine.machine import choose_machine
from hemafast.engine.step import Steps, Totals, build_optimizer
from hemafast.engine.trainer import resume, train
from hemafast.errors import StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.model import build_model
from hemafast.objective import build_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # Inductor and cuDNN advise according to the device
]

AMPERE = (8, 0)
CLASSES = 5


def needs_bf16() -> None:
    if torch.cuda.get_device_capability() < AMPERE:
        pytest.skip("needs bf16, which came with compute capability 8.0")


def batch_of(images: int = 8, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 56, 56), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    return Batch(pixels.cuda().contiguous(memory_format=torch.channels_last), labels.cuda(), torch.arange(images))


def steps_with(amp: str):
    torch.manual_seed(0)
    model = build_model("test_resnet", CLASSES, 56).cuda().train()
    loss = build_loss(torch.tensor([9, 3, 1, 0, 7]).numpy(), weighted=True, label_smoothing=0.1).cuda()
    machine = choose_machine(device="cuda", amp=amp, compiled="off", threads=2)
    return model, Steps(model, loss, machine), build_optimizer(model, lr=1e-3, weight_decay=0.01)


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_every_precision_learns_a_batch_by_heart(amp):
    if amp == "bf16":
        needs_bf16()
    _, steps, optimizer = steps_with(amp)
    batch, losses = batch_of(), []
    for _ in range(40):
        totals = Totals(CLASSES, "cuda")
        steps.train(batch, optimizer, 3e-3, totals)
        losses.append(totals.read()[0])
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize("amp", ["off", "fp16", "bf16"])
def test_a_training_step_never_waits_for_the_gpu(amp):
    if amp == "bf16":
        needs_bf16()
    _, steps, optimizer = steps_with(amp)
    totals, batch = Totals(CLASSES, "cuda"), batch_of()
    for _ in range(3):  # the first steps allocate and choose algorithms
        steps.train(batch, optimizer, 1e-3, totals)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.train(batch, optimizer, 1e-3, totals)
        totals.glance()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_glance_never_fails_and_gives_values_in_the_end():
    totals = Totals(CLASSES, "cuda")
    logits = torch.eye(CLASSES, device="cuda")
    labels = torch.arange(CLASSES, device="cuda")
    seen, deadline = None, time.monotonic() + 30
    while seen is None and time.monotonic() < deadline:
        totals.add(torch.nn.functional.cross_entropy(logits, labels), logits, labels)
        seen = totals.glance()
    assert seen is not None
    mean, confusion = seen
    assert mean == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-6)
    assert confusion.trace() == confusion.sum() > 0
    assert totals.read()[1].sum() == totals.images


def test_a_step_on_the_gpu_is_the_step_on_the_cpu():
    model, steps, _ = steps_with("off")
    twin = build_model("test_resnet", CLASSES, 56).train()
    twin.load_state_dict(model.state_dict())
    loss = build_loss(torch.tensor([9, 3, 1, 0, 7]).numpy(), weighted=True, label_smoothing=0.1)
    twin_steps = Steps(twin, loss, choose_machine(device="cpu", amp="off", compiled="off", threads=2))
    batch, losses = batch_of(), []
    for network, one, device in ((model, steps, "cuda"), (twin, twin_steps, "cpu")):
        totals = Totals(CLASSES, device)
        moved = Batch(batch.images.to(device), batch.labels.to(device), batch.rows)
        one.train(moved, torch.optim.SGD(network.parameters(), lr=0.1), 0.1, totals)
        losses.append(totals.read()[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # convolutions may run in TF32
    for on_gpu, on_cpu in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
def test_a_compiled_run_in_bf16_trains_and_is_scored(settings):
    needs_bf16()
    folder = train(settings(amp="bf16", compile="on"), Console(quiet=True))
    assert [row["epoch"] for row in read_rows(folder)] == [1, 2]
    metrics = evaluate_run(folder)
    assert metrics["pooled"]["macro_f1"] == pytest.approx(
        max(row["val_macro_f1"] for row in read_rows(folder)), abs=0.2
    )


@pytest.mark.parametrize("kind", ["auto", "resident", "packed", "files"])
def test_a_run_with_every_default_trains(settings, kind):
    folder = train(settings(amp="auto", input=kind), Console(quiet=True))
    rows = read_rows(folder)
    assert len(rows) == 2
    assert rows[1]["train_loss"] < rows[0]["train_loss"]


@pytest.mark.parametrize("amp", ["off", "fp16"])
def test_a_run_is_resumed_on_the_gpu(settings, monkeypatch, amp):
    original, calls = Steps.train, iter(range(1000))

    def stop_in_the_second_epoch(self, *arguments):
        if next(calls) == 8:
            raise KeyboardInterrupt
        original(self, *arguments)

    config = settings(amp=amp, onecycle=True)
    monkeypatch.setattr(Steps, "train", stop_in_the_second_epoch)
    with pytest.raises(StoppedError):
        train(config, Console(quiet=True))
    monkeypatch.setattr(Steps, "train", original)
    (folder,) = config.output.iterdir()
    stopped = load_last(folder / "last_model.ckpt")
    assert stopped["progress"]["epochs_done"] == 1
    assert len(stopped["cuda_rng"]) == torch.cuda.device_count()
    assert bool(stopped["scaler"]) == (amp == "fp16")
    resume(folder, Console(quiet=True))
    straight = train(settings(amp=amp, onecycle=True), Console(quiet=True))
    first, second = read_rows(folder), read_rows(straight)
    assert [row["epoch"] for row in first] == [1, 2]
    assert [row["lr"] for row in first] == [row["lr"] for row in second]
    # cuDNN may choose other algorithms from run to run: close, not equal.
    assert first[1]["train_loss"] == pytest.approx(second[1]["train_loss"], rel=0.1)


def test_a_model_trained_on_the_gpu_scores_alike_on_the_cpu(settings):
    folder = train(settings(), Console(quiet=True))
    gpu, cpu = (evaluate_run(folder, device=device) for device in ("cuda", "cpu"))
    assert gpu["log_loss"] == pytest.approx(cpu["log_loss"], rel=0.05)
    assert gpu["pooled"]["images"] == cpu["pooled"]["images"]


@pytest.mark.slow
def test_every_station_of_the_bench_runs_on_the_gpu(prepared):
    bench = Bench(
        data=prepared.folder,
        model="test_resnet",
        image_size=56,
        batch_size=8,
        loader_batch_size=8,
        threads=2,
        device="cuda",
        compile="off",
    )
    result = run_bench(bench, rounds=3, seconds=0.1)
    assert set(result["stations"]) == set(STATIONS)
    assert all(station["images_per_second"]["min"] > 0 for station in result["stations"].values())
    assert result["machine"]["device"] == "cuda"
