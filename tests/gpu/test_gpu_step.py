"""Single steps on a GPU: precise, compiled, and never waited for."""

import time
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from hemafast.config import CompileMode, LossName
from hemafast.data.batch import Batch
from hemafast.engine.average import Average
from hemafast.engine.captured import Captured
from hemafast.engine.compiling import Compiler
from hemafast.engine.learner import synchronised
from hemafast.engine.machine import choose_machine
from hemafast.engine.optimizer import build_optimizer
from hemafast.engine.step import EvalStep, Late, Mix, Totals, TrainStep, seed_batch
from hemafast.model import build_model
from hemafast.objective import build_loss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # Inductor and cuDNN advise according to the device
]

AMPERE = (8, 0)
CLASSES = 5
COUNTS = np.array([9, 3, 1, 0, 7])
A_SECOND = 2_000_000_000  # cycles, more or less


@pytest.fixture(params=["off", "fp16", "bf16"])
def amp(request) -> str:
    if request.param == "bf16" and torch.cuda.get_device_capability() < AMPERE:
        pytest.skip("needs bf16, which came with compute capability 8.0")
    return request.param


@pytest.fixture
def no_waiting():
    """Within it, what would make the host wait for the GPU is an error."""

    class NoWaiting:
        def __enter__(self):
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("error")

        def __exit__(self, *_):
            torch.cuda.set_sync_debug_mode("default")

    return NoWaiting()


def batch_of(images: int = 8, seed: int = 0, device: str = "cuda") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 64, 64), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Batch(pixels.to(device), labels.to(device), torch.arange(images))


def objective(name: LossName = "weighted", device: str = "cuda") -> nn.Module:
    return build_loss(COUNTS, name, smoothing=0.1).to(device)


def machine_with(amp="off", device="cuda"):
    return choose_machine(device=device, amp=amp, compiled="off", threads=2)


def network(name="test_resnet", **options):
    torch.manual_seed(0)
    return build_model(name, CLASSES, 64, **options).cuda().train()


def step_of(model, amp="off", *, loss="weighted", compiler=None, **options) -> TrainStep:
    optimizer = build_optimizer(model, weight_decay=0.01, layer_decay=0.8, device="cuda")
    return TrainStep(model, objective(loss), optimizer, machine_with(amp), compiler, **options)


def thorough_step(amp, **changes) -> TrainStep:
    """With every option."""
    model = network(dropout=0.2, drop_path=0.1)
    options = {
        "clip_grad": 1.0,
        "ema": Average(model, 0.9),
        "mix": Mix(CLASSES, mixup=0.4, cutmix=0.4),
        "skip_bad": True,
    }
    return step_of(model, amp, **options | changes)


def test_every_precision_learns_a_batch_by_heart(amp):
    step, batch, losses = step_of(network(), amp), batch_of(), []
    for number in range(60):
        totals = Totals(CLASSES, "cuda")
        step(batch, 3e-3, totals, step=number)
        losses.append(totals.read()[0])
    assert losses[-1] < 0.7 * losses[0]
    assert step.bad.read()[0] == 0


@pytest.mark.parametrize("loss", get_args(LossName))
@pytest.mark.parametrize("mixed", [True, False])
def test_a_training_step_never_waits_for_the_gpu(amp, loss, mixed, no_waiting):
    step = thorough_step(amp, loss=loss) if mixed else thorough_step(amp, loss=loss, mix=None)
    totals, batches = Totals(CLASSES, "cuda"), [batch_of(images, seed) for seed, images in enumerate((8, 8, 7))]

    def epoch(first: int) -> None:
        for number, batch in enumerate(batches):
            step(batch, 1e-3, totals, step=first + number, share=0.5, update=number != 0)
            totals.glance()
            step.bad.glance()

    epoch(0)  # the first steps allocate and choose algorithms
    with no_waiting:
        epoch(3)


def test_an_evaluation_step_never_waits_for_the_gpu(amp, no_waiting):
    step, totals, batch = (
        EvalStep(network().eval(), objective(), machine_with(amp)),
        Totals(CLASSES, "cuda"),
        batch_of(),
    )
    step(batch, totals)
    with no_waiting:
        probabilities = step(batch, totals)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(8, device="cuda"))


def test_a_late_value_is_exact_and_never_waited_for(no_waiting):
    value = torch.zeros(3, dtype=torch.float64, device="cuda")
    late = Late(value)
    with no_waiting:
        torch.cuda._sleep(A_SECOND)
        value += 7
        assert late.glance() is None  # asked for
        value += 1
        assert late.glance() is None  # on its way
        assert not torch.cuda.current_stream().query()  # the GPU is still busy: nobody has waited
    torch.cuda.synchronize()
    seen = late.glance()  # as of when it was asked for; asks anew
    assert seen.tolist() == [7, 7, 7]
    torch.cuda.synchronize()
    assert late.glance().tolist() == [8, 8, 8]
    assert seen.tolist() == [7, 7, 7]  # a copy, which later values do not write over


def test_a_glance_at_totals_gives_values_in_the_end():
    totals = Totals(CLASSES, "cuda")
    logits, labels = torch.eye(CLASSES, device="cuda"), torch.arange(CLASSES, device="cuda")
    loss = nn.functional.cross_entropy(logits, labels)
    seen, deadline = None, time.monotonic() + 30
    while seen is None and time.monotonic() < deadline:
        totals.add(loss, logits, labels)
        seen = totals.glance()
    mean, confusion = seen
    assert mean == pytest.approx(loss.item(), rel=1e-6)
    assert confusion.trace() == confusion.sum() > 0


def test_a_step_on_the_gpu_is_the_step_on_the_cpu():
    model = network()
    twin = build_model("test_resnet", CLASSES, 64).train()
    twin.load_state_dict(model.state_dict())
    losses = []
    for part, device in ((model, "cuda"), (twin, "cpu")):
        rate = torch.zeros((), device=device)
        optimizer = torch.optim.SGD([{"params": list(part.parameters()), "lr": rate}], lr=rate, fused=True)
        totals = Totals(CLASSES, device)
        step = TrainStep(part, objective(device=device), optimizer, machine_with(device=device))
        step(batch_of(device=device), 0.1, totals, step=0)
        losses.append(totals.read()[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # convolutions may run in TF32
    for on_gpu, on_cpu in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(on_gpu.cpu(), on_cpu, atol=2e-2, rtol=2e-2)


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(CompileMode))
@pytest.mark.parametrize("accumulate", [1, 2])
def test_every_mode_of_the_compiler_trains_as_the_step_is(mode, accumulate):
    """A mode with CUDA graphs writes into the same memory at every replay: gradients that are added up must outlive it.

    The last batch is short, and runs uncompiled between replays.
    """
    torch._dynamo.reset()
    compiler = Compiler(enabled=True, mode=mode, batch_size=8)
    batches = [batch_of(images, seed) for seed, images in enumerate((8, 8, 8, 8, 8, 8, 8, 5))]
    seen = []
    for model, wanted in ((network("test_vit"), None), (network("test_vit"), compiler)):
        step, totals = step_of(model, compiler=wanted, clip_grad=1.0), Totals(CLASSES, "cuda")
        for number, batch in enumerate(batches):
            update = number % accumulate == accumulate - 1
            step(batch, 1e-3, totals, step=number // accumulate, share=1 / accumulate, update=update)
        seen.append((*totals.read(), totals.mean_norm()))
    (loss, confusion, norm), (compiled_loss, compiled_confusion, compiled_norm) = seen
    assert compiled_loss == pytest.approx(loss, rel=1e-2)
    assert compiled_norm == pytest.approx(norm, rel=5e-2)
    assert compiled_confusion.sum() == confusion.sum()
    assert [part.name for part in compiler.compiled] == ["training"]
    assert compiler.recompiles == 0


@pytest.mark.slow
@pytest.mark.parametrize("mode", get_args(CompileMode))
def test_a_compiled_step_never_waits_for_the_gpu(mode, no_waiting):
    torch._dynamo.reset()
    step = thorough_step("off", compiler=Compiler(enabled=True, mode=mode, batch_size=8))
    totals, batch = Totals(CLASSES, "cuda"), batch_of()
    for number in range(5):  # compiles, warms up, records
        step(batch, 1e-3, totals, step=number)
    with no_waiting:
        step(batch, 1e-3, totals, step=5)


def captured(*called) -> Captured:
    return Captured(*called, batch_size=8)


def test_a_captured_step_is_the_step(amp, caplog):
    batches = [batch_of(images, seed) for seed, images in enumerate((8, 8, 8, 8, 8, 8, 5, 8))]
    seen = []
    for capture in (None, captured):
        model = network(dropout=0.2, drop_path=0.1)
        options = {"clip_grad": 1.0, "ema": Average(model, 0.9), "skip_bad": True, "capture": capture}
        step, totals = step_of(model, amp, **options), Totals(CLASSES, "cuda")
        with caplog.at_level("INFO", logger="hemafast"):
            for number, batch in enumerate(batches):
                seed_batch(0, 0, 0, number)
                step(batch, 1e-3, totals, step=number)
        seen.append((totals.read()[0], totals.mean_norm(), options["ema"].module.state_dict()))
    (loss, norm, averaged), (captured_loss, captured_norm, captured_averaged) = seen
    assert "captured the training step at 64 px as one CUDA graph" in caplog.text
    assert captured_loss == pytest.approx(loss, rel=1e-2)
    assert captured_norm == pytest.approx(norm, rel=5e-2)
    for name, tensor in averaged.items():
        torch.testing.assert_close(captured_averaged[name], tensor, atol=2e-2, rtol=2e-2)


def test_a_captured_step_never_waits_and_reads_its_rate_anew(amp, no_waiting):
    step, totals = step_of(network(), amp, skip_bad=True, capture=captured), Totals(CLASSES, "cuda")
    for number in range(5):
        step(batch_of(seed=number), 1e-3, totals, step=number)
    before = [parameter.detach().clone() for parameter in step._parameters]
    with no_waiting:
        step(batch_of(), float("nan"), totals, step=5)  # a rate that would ruin every weight
    assert step._captured._graph is not None
    assert not all(torch.equal(*pair) for pair in zip(before, step._parameters, strict=True))


@pytest.mark.slow
def test_a_compiled_step_is_captured_too(no_waiting):
    torch._dynamo.reset()
    compiler = Compiler(enabled=True, mode="default", batch_size=8)
    step, totals = step_of(network(), compiler=compiler, capture=captured), Totals(CLASSES, "cuda")
    for number in range(6):
        step(batch_of(seed=number), 1e-3, totals, step=number)
    with no_waiting:
        step(batch_of(), 1e-3, totals, step=6)
    assert step._captured._graph is not None
    assert compiler.recompiles == 0


def test_gradients_that_overflow_fp16_are_skipped_and_are_no_bad_update():
    model = network()
    step, totals, before = step_of(model, "fp16"), Totals(CLASSES, "cuda"), {}
    step.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40, growth_interval=10_000)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    step(batch_of(), 1e-3, totals, step=0)
    assert step.scaler.get_scale() == 2.0**39
    assert all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())
    for number in range(1, 40):
        step(batch_of(), 1e-3, totals, step=number)
    assert step.bad.read()[0] == 0
    assert np.isfinite(totals.mean_norm())
    assert not all(torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("skip", [True, False])
def test_a_loss_that_is_not_finite_moves_nothing_and_is_counted(amp, skip):
    class Broken(nn.Module):
        def forward(self, logits, targets):
            return nn.functional.cross_entropy(logits, targets) * factor

    model, factor = network(), torch.ones((), device="cuda")
    optimizer = build_optimizer(model, weight_decay=0.01, device="cuda")
    step = TrainStep(model, Broken(), optimizer, machine_with(amp), skip_bad=skip)
    totals = Totals(CLASSES, "cuda")
    step(batch_of(), 1e-3, totals, step=0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factor.fill_(torch.nan)
    step(batch_of(seed=1), 1e-3, totals, step=1)
    parameters = {name for name, _ in model.named_parameters()}
    kept = [name for name, tensor in before.items() if name in parameters or (skip and tensor.is_floating_point())]
    assert all(torch.equal(before[name], model.state_dict()[name]) for name in kept)
    assert step.bad.read() == (1, 1)
    assert np.isfinite(totals.read()[0])


def test_a_batch_seeds_what_is_drawn_on_the_gpu():
    drawn = []
    for batch in (3, 4, 3):
        seed_batch(42, 0, 1, batch)
        drawn.append(torch.rand(16, device="cuda"))
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_synchronised_batch_norm_alone_is_batch_norm(name):
    losses = []
    for convert in (False, True):
        model = network(name)
        model = synchronised(model, machine_with()) if convert else model
        totals = Totals(CLASSES, "cuda")
        step_of(model)(batch_of(), 1e-3, totals, step=0)
        losses.append(totals.read()[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
