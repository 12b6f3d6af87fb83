"""Small networks, batches of noise, and single steps over them."""

import torch
from torch import nn

from hemafast.data.batch import Batch
from hemafast.engine.machine import Machine
from hemafast.engine.step import Totals, TrainStep
from hemafast.model import Classifier, build_model

CPU = Machine("cpu", "fp32", False, 1, (), {})
CLASSES = 5
SIDE = 32


def batch_of(images: int, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (images,), generator=generator)
    return Batch(pixels.contiguous(memory_format=torch.channels_last), labels, torch.arange(images))


def parts_of(batch: Batch, *sizes: int) -> list[Batch]:
    """The batch cut into batches of these sizes."""
    pieces = (tensor.split(sizes) for tensor in (batch.images, batch.labels, batch.rows))
    return [Batch(*piece) for piece in zip(*pieces, strict=True)]


def network(name: str = "test_resnet", seed: int = 0, **options) -> Classifier:
    torch.manual_seed(seed)
    return build_model(name, CLASSES, SIDE, **options)


def plain_descent(model: nn.Module) -> torch.optim.SGD:
    """Plain gradient descent at a rate that a step sets, so that what a step adds to the weights is its gradient."""
    rate = torch.zeros(())
    return torch.optim.SGD([{"params": list(model.parameters()), "lr": rate}], lr=rate, fused=True)


def train_on(step: TrainStep, *batches: Batch, lr: float = 0.1, totals: Totals | None = None) -> Totals:
    """An update with each of the batches."""
    totals = totals or Totals(CLASSES, "cpu")
    for number, batch in enumerate(batches):
        step(batch, lr, totals, step=number)
    return totals


def changed(before: dict[str, torch.Tensor], model: nn.Module) -> set[str]:
    """Names of what is not, bit for bit, what it was."""
    return {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
