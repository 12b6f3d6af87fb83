"""The forward pass and loss of every preset on a GPU that is not there: mistakes of device and type show in tracing."""

import warnings
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from hemafast.config import TrainConfig, train_config
from hemafast.data.batch import Batch
from hemafast.engine.machine import Machine
from hemafast.engine.step import Mix, loss_forward
from hemafast.model import Classifier, build_model
from hemafast.objective import build_loss
from hemafast.presets import PRESETS

CLASSES, IMAGES = 11, 3
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COUNTS = np.arange(CLASSES)  # one class is absent


@cache
def network_of(model: str, image_size: int, drop_path: float | None) -> Classifier:
    """Built at its real size, once for all presets that share it."""
    return moved_to_fake_cuda(build_model(model, CLASSES, image_size, drop_path=drop_path))


FAKE = FakeTensorMode()


def moved_to_fake_cuda(module: nn.Module) -> nn.Module:
    """Replace all tensors by ones of the same shape and type that claim to lie on a GPU."""
    with FAKE:
        for part in module.modules():
            for name, tensor in part.named_parameters(recurse=False):
                setattr(part, name, nn.Parameter(torch.empty(tensor.shape, device="cuda")))
            for name, tensor in part.named_buffers(recurse=False):
                setattr(part, name, torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda"))
    return module


@pytest.fixture(autouse=True)
def _with_gpu(monkeypatch):
    """Without one, autocast switches itself off."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)


def trace(config: TrainConfig, precision: str, *, mixed: bool = False, training: bool = True):
    """Loss and logits of a batch of `config`, as a training or evaluation step computes them."""
    model = network_of(config.model, config.image_size, config.drop_path).train(training)
    loss = build_loss(COUNTS, config.loss, smoothing=config.label_smoothing)
    side = config.image_size
    with FAKE, warnings.catch_warnings():
        warnings.simplefilter("error")  # autocast that is switched off only warns
        moved_to_fake_cuda(loss)
        images = torch.empty(IMAGES, 3, side, side, dtype=torch.uint8, device="cuda")
        batch = Batch(images, torch.empty(IMAGES, dtype=torch.int64, device="cuda"), torch.arange(IMAGES))
        images, targets = Mix(CLASSES, mixup=0.2, cutmix=0.2)(batch) if mixed else (batch.images, batch.labels)
        value, logits = loss_forward(model, loss, Machine("cuda", precision, False, 1, (), {}))(images, targets)
    return value, logits


@pytest.mark.slow
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_traces_in_every_precision(preset, precision):
    for training in (True, False):
        value, logits = trace(train_config(preset), precision, training=training)
        assert value.device.type == logits.device.type == "cuda"
        assert value.dtype == torch.float32  # the loss is computed in full precision whatever the network was
        assert logits.dtype == PRECISIONS[precision]
        assert (value.shape, logits.shape) == ((), (IMAGES, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["cross-entropy", "weighted", "focal", "logit-adjusted"])
def test_every_loss_traces_with_mixed_targets_in_half_precision(loss):
    value, _ = trace(train_config("quick", loss=loss), "fp16", mixed=True)
    assert (value.dtype, value.device.type) == (torch.float32, "cuda")


@pytest.mark.slow
def test_a_tensor_on_the_wrong_device_would_show():
    model = build_model("test_resnet", CLASSES, 64)  # its weights stay on the host
    with FAKE, pytest.raises((RuntimeError, AssertionError)):
        loss_forward(model, nn.CrossEntropyLoss(), Machine("cuda", "bf16", False, 1, (), {}))(
            torch.empty(IMAGES, 3, 64, 64, dtype=torch.uint8, device="cuda"),
            torch.empty(IMAGES, dtype=torch.int64, device="cuda"),
        )
