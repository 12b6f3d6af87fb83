"""One step of training and of evaluation."""

import copy
import dataclasses
import warnings

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hemafast.data.loader import Batch
from hemafast.engine.machine import Machine
from hemafast.engine.step import Steps, Totals, build_optimizer
from hemafast.model import build_model
from hemafast.objective import build_loss

CPU = Machine("cpu", "fp32", False, 1, (), {})
CLASSES = 5
COUNTS = np.array([9, 3, 1, 0, 7])


def batch_of(images: int, seed: int = 0, device: str = "cpu") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    return Batch(pixels.to(device), labels.to(device), torch.arange(images))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return build_model("test_resnet", CLASSES, 32)


@pytest.fixture
def loss():
    return build_loss(COUNTS, weighted=True, label_smoothing=0.1)


def test_totals_are_the_mean_loss_and_the_confusion_of_all_batches():
    totals, losses, actual, predicted = Totals(CLASSES, "cpu"), [], [], []
    for seed, images in enumerate((8, 8, 3)):
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(images, CLASSES, generator=generator)
        labels = torch.randint(0, CLASSES, (images,), generator=generator)
        each = nn.functional.cross_entropy(logits, labels, reduction="none")
        totals.add(each.mean(), logits, labels)
        losses += each.tolist()
        actual += labels.tolist()
        predicted += logits.argmax(dim=1).tolist()
    mean, confusion = totals.read()
    assert mean == pytest.approx(np.mean(losses), rel=1e-6)
    assert np.array_equal(confusion, confusion_matrix(actual, predicted, labels=range(CLASSES)))
    assert totals.images == 19
    glanced = totals.glance()
    assert glanced is not None
    assert glanced[0] == mean


def test_totals_of_nothing_are_zero():
    mean, confusion = Totals(CLASSES, "cpu").read()
    assert mean == 0
    assert confusion.sum() == 0


def test_a_step_is_the_step_of_a_plain_script(model, loss):
    plain, batch = copy.deepcopy(model.backbone), batch_of(8)
    optimizer = torch.optim.SGD(model.parameters(), lr=99)
    totals = Totals(CLASSES, "cpu")
    Steps(model, loss, CPU).train(batch, optimizer, 0.1, totals)

    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in (model.mean, model.std))
    normal = (batch.images.contiguous().float() / 255 - mean) / std
    weight = torch.from_numpy(np.array([20 / (4 * n) if n else 0 for n in COUNTS], dtype=np.float32))
    expected = nn.functional.cross_entropy(plain.train()(normal), batch.labels, weight=weight, label_smoothing=0.1)
    expected.backward()
    torch.optim.SGD(plain.parameters(), lr=0.1).step()

    assert totals.read()[0] == pytest.approx(expected.item(), abs=1e-5)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(model.backbone.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_training_changes_the_weights_at_the_rate_it_is_given(model, loss):
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, lr=99, weight_decay=0.0)
    Steps(model, loss, CPU).train(batch_of(8), optimizer, 1e-3, Totals(CLASSES, "cpu"))
    moved = [(parameter.detach() - before[name]).abs().max().item() for name, parameter in model.named_parameters()]
    assert max(moved) == pytest.approx(1e-3, rel=1e-3)  # Adam's first step has the length of the rate
    assert optimizer.param_groups[0]["fused"]


def test_gradients_do_not_pile_up_over_steps(model, loss):
    twin = copy.deepcopy(model)
    steps, twins = (Steps(network, loss, CPU) for network in (model, twin))
    totals, batch = Totals(CLASSES, "cpu"), batch_of(8)
    frozen, thawed = (torch.optim.SGD(network.parameters(), lr=1) for network in (model, twin))
    for _ in range(3):
        steps.train(batch, frozen, 0.0, totals)
    twins.train(batch, thawed, 0.0, totals)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_evaluation_leaves_the_model_alone(model, loss):
    model.eval()
    before = copy.deepcopy(model.state_dict())
    totals = Totals(CLASSES, "cpu")
    probabilities = Steps(model, loss, CPU).evaluate(batch_of(8), totals)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not probabilities.requires_grad
    assert totals.images == 8


def test_a_model_still_learns_after_an_evaluation(model, loss):
    steps, totals = Steps(model, loss, CPU), Totals(CLASSES, "cpu")
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.0)
    steps.evaluate(batch_of(8), totals)
    steps.train(batch_of(8), optimizer, 1e-3, totals)
    assert totals.images == 16
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_probabilities_are_fp32_and_sum_to_one_in_every_precision(model, loss, precision):
    machine = dataclasses.replace(CPU, precision=precision)
    probabilities = Steps(model.eval(), loss, machine).evaluate(batch_of(8), Totals(CLASSES, "cpu"))
    assert probabilities.dtype == torch.float32
    assert probabilities.shape == (8, CLASSES)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(8))


def test_only_fp16_scales_its_gradients(model, loss):
    for precision in ("fp32", "bf16"):
        assert not Steps(model, loss, dataclasses.replace(CPU, precision=precision)).scaler.is_enabled()
    assert Steps(model, loss, dataclasses.replace(CPU, precision="fp16")).scaler.is_enabled()


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, tensors copied to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.overloadpacket.__name__, kwargs or {}
        if name in {"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2"}:
            self.found.append(name)
        if name == "_to_copy" and torch.device(kwargs.get("device") or "meta").type == "cpu":
            self.found.append(name)
        return func(*args, **kwargs)

    def watched(self, name, method):
        def call(tensor, *arguments, **options):
            self.found.append(name)
            return method(tensor, *arguments, **options)

        return call


@pytest.fixture
def waits(monkeypatch):
    """Waits of the block under it; on a CPU some never reach the dispatcher, so the methods are watched too."""
    mode = Waits()
    for name in ("cpu", "numpy", "tolist", "item", "__bool__", "__float__", "__int__", "__index__", "__array__"):
        monkeypatch.setattr(torch.Tensor, name, mode.watched(name, getattr(torch.Tensor, name)))
    return mode


def test_a_training_step_never_makes_the_host_wait(model, loss, waits):
    steps, totals = Steps(model, loss, CPU), Totals(CLASSES, "cpu")
    optimizer = build_optimizer(model, lr=1e-3, weight_decay=0.01)
    batches = [batch_of(8, seed) for seed in range(2)]
    with waits:
        for batch in batches:
            steps.train(batch, optimizer, 1e-3, totals)
    assert waits.found == []
    with waits:
        totals.read()
    assert {"cpu", "numpy", "__float__"} <= set(waits.found)  # what the watch is able to see


def moved_to_fake_cuda(module: nn.Module) -> nn.Module:
    """Within a FakeTensorMode: replace all tensors by ones of the same shape that claim to lie on a GPU."""
    for part in module.modules():
        for name, tensor in part.named_parameters(recurse=False):
            setattr(part, name, nn.Parameter(torch.empty(tensor.shape, device="cuda")))
        for name, tensor in part.named_buffers(recurse=False):
            setattr(part, name, torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
    return module


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_the_forward_fits_a_gpu_in_devices_and_types(model, loss, monkeypatch, precision, dtype):
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    machine = Machine("cuda", precision, False, 1, (), {})
    with FakeTensorMode():
        network, objective = moved_to_fake_cuda(model), moved_to_fake_cuda(loss)
        totals = Totals(CLASSES, "cuda")
        images = torch.empty(8, 3, 32, 32, dtype=torch.uint8, device="cuda")
        labels = torch.empty(8, dtype=torch.int64, device="cuda")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # autocast that is switched off only warns
            value, logits = Steps(network, objective, machine)._forward(images, labels)
        totals.add(value, logits.detach(), labels)
    assert (value.dtype, value.device.type) == (torch.float32, "cuda")
    assert (logits.dtype, logits.device.type) == (dtype, "cuda")
    assert value.requires_grad
