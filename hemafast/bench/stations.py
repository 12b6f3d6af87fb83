"""The stations: each an endless stream of finished batches, on our side and on a plain PyTorch script's side.

A station yields the number of images of each batch once the work on it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hemafast.config import Amp, Compile, Device
from hemafast.data.augment import POLICIES
from hemafast.data.dataset import Samples, open_dataset
from hemafast.data.graph import GraphShape, Source
from hemafast.data.loader import Loader, train_loader
from hemafast.engine.compiling import Compiler
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.prepare.split import TRAIN

if TYPE_CHECKING:
    import torch

    from hemafast.data.loader import Batch

Station = Iterator[int]


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and on what."""

    data: Path
    model: str = "efficientnet_b0"
    image_size: int = 224
    batch_size: int = 32
    loader_batch_size: int = 64
    threads: int | None = None
    device: Device = "auto"
    amp: Amp = "auto"
    compile: Compile = "auto"


def packed_loader(bench: Bench) -> Station:
    """Our loader alone, from packed pixels, policy basic, to uint8."""
    return _drained(_loader(bench, _machine(bench), "packed", bench.loader_batch_size))


def files_loader(bench: Bench) -> Station:
    """Our loader alone, from encoded files, policy basic, to uint8."""
    return _drained(_loader(bench, _machine(bench), "files", bench.loader_batch_size))


def torchvision_loader(bench: Bench) -> Station:
    """The reference pipeline's loader: PIL, its transforms, as many worker processes as our loader has threads."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    side = bench.image_size
    reference = transforms.Compose(
        [
            transforms.Resize(round(side * 8 / 7)),
            transforms.RandomResizedCrop(side),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    machine = _machine(bench)
    files: Any = _Files(_samples(bench), reference)
    batches: Any = DataLoader(
        files,
        batch_size=bench.loader_batch_size,
        shuffle=True,
        num_workers=machine.loader_threads,
        persistent_workers=True,
    )
    return (len(labels) for _ in count() for _, labels in batches)


def step(bench: Bench) -> Station:
    """Our training step alone, on batches that lie ready on the device."""
    machine = _machine(bench, tuned=True)
    return _trained(bench, machine, cycle(ready_batches(bench, machine)))


def ready_batches(bench: Bench, machine: Machine) -> list[Batch]:
    """A few batches of training images on the device."""
    batches = _loader(bench, machine, "packed", bench.batch_size).epoch(0)
    return [batch for batch, _ in zip(batches, range(4), strict=False)]


def plain_step(bench: Bench) -> Station:
    """The training step of a plain script: eager, NCHW, fp32, AdamW and allocator as they come."""
    import timm
    import torch

    from hemafast.model import sized_options

    device = _machine(bench).device
    classes = len(open_dataset(bench.data).info.classes)
    sized = sized_options(bench.model, bench.image_size)
    model = timm.create_model(bench.model, num_classes=classes, **sized).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_of = torch.nn.CrossEntropyLoss()
    images = torch.randn(bench.batch_size, 3, bench.image_size, bench.image_size, device=device)
    labels = torch.randint(0, classes, (bench.batch_size,), device=device)
    while True:
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        _wait_for(device)
        yield bench.batch_size


def end_to_end(bench: Bench) -> Station:
    """Our loader and our training step together, as `hemafast train` runs them."""
    machine = _machine(bench, tuned=True)
    loader = _loader(bench, machine, "packed", bench.batch_size)
    return _trained(bench, machine, (batch for epoch in count() for batch in loader.epoch(epoch)))


STATIONS: dict[str, Callable[[Bench], Station]] = {
    "loader, packed": packed_loader,
    "loader, files": files_loader,
    "loader, torchvision": torchvision_loader,
    "step": step,
    "step, plain PyTorch": plain_step,
    "end to end": end_to_end,
}
"""All stations by the names of the table."""


class _Files:
    """The split's files as a map-style data set: Pillow image, then `transform`."""

    def __init__(self, samples: Samples, transform: Callable[[Any], torch.Tensor]) -> None:
        self._paths, self._labels, self._transform = samples.paths, samples.labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        from torchvision.datasets.folder import default_loader

        return self._transform(default_loader(self._paths[row])), int(self._labels[row])


def _samples(bench: Bench) -> Samples:
    return open_dataset(bench.data).samples(TRAIN, bench.image_size)


def _machine(bench: Bench, *, tuned: bool = False) -> Machine:
    """The machine's choices; only `tuned` stations may touch the allocator, which is the whole process's."""
    allocator = tune_allocator() if tuned else None
    return choose_machine(
        device=bench.device, amp=bench.amp, compiled=bench.compile, threads=bench.threads, allocator=allocator
    )


def _loader(bench: Bench, machine: Machine, source: Source, batch_size: int) -> Loader:
    samples = _samples(bench)
    shape = GraphShape(
        device=machine.loader_device,
        source=source,
        packed_size=samples.packed_size,
        image_size=bench.image_size,
        batch_size=batch_size,
        threads=machine.loader_threads,
    )
    return train_loader(samples, policy=POLICIES["basic"], seed=0, shape=shape)


def _drained(loader: Loader) -> Station:
    for epoch in count():
        for batch in loader.epoch(epoch):
            _wait_for(batch.images.device.type)
            yield len(batch.labels)


def _trained(bench: Bench, machine: Machine, batches: Iterator[Batch]) -> Station:
    from hemafast.engine.optimizer import build_optimizer
    from hemafast.engine.step import Totals, TrainStep
    from hemafast.model import build_model
    from hemafast.objective import CrossEntropy

    classes = len(open_dataset(bench.data).info.classes)
    model = build_model(bench.model, classes, bench.image_size).to(machine.device)
    optimizer = build_optimizer(model, weight_decay=0.01, device=machine.device)
    compiler = Compiler(enabled=machine.compiled, batch_size=bench.batch_size)
    step, totals = TrainStep(model, CrossEntropy(), optimizer, machine, compiler), Totals(classes, machine.device)
    for number, batch in enumerate(batches):
        step(batch, 1e-4, totals, step=number)
        _wait_for(machine.device)
        yield len(batch.labels)


def _wait_for(device: str) -> None:
    """A GPU works on after the call returns; a time taken before it is done means nothing."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
