"""Stations of the peer, a plain PyTorch script: the loader of the reference, and a training step with all defaults."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from hemafast.bench.settings import Bench
from hemafast.bench.worker import Done, Station
from hemafast.data.samples import Samples
from hemafast.waiting import spin_as_usual

if TYPE_CHECKING:
    import torch


def torchvision_loader(bench: Bench) -> Station:
    """The loader of the reference: Pillow, its transforms, and one worker process for each thread of our loader."""
    from torch.utils.data import DataLoader
    from torchvision import transforms

    side = bench.settings.image_size
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
    batches: Any = DataLoader(
        _Files(bench.samples, reference),  # type: ignore[arg-type] # not a subclass: torch is imported late
        batch_size=bench.loader_batch_size,
        shuffle=True,
        num_workers=bench.machine().loader_threads,
        persistent_workers=True,
    )
    return (Done(len(labels)) for _ in count() for _, labels in batches)


def plain_step(bench: Bench) -> Station:
    """A plain training step: eager, NCHW, fp32, default AdamW, allocator and waiting of threads."""
    spin_as_usual(os.environ)
    import timm
    import torch

    from hemafast.model import sized_options

    device, classes = bench.machine().device, len(bench.dataset.classes)
    name, side = bench.settings.model, bench.settings.image_size
    model = timm.create_model(name, num_classes=classes, **sized_options(name, side)).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    loss_of = torch.nn.CrossEntropyLoss()
    images = torch.randn(bench.batch_size, 3, side, side, device=device)
    labels = torch.randint(0, classes, (bench.batch_size,), device=device)
    while True:
        optimizer.zero_grad()
        loss_of(model(images), labels).backward()
        optimizer.step()
        yield Done(bench.batch_size)


class _Files:
    """The files of a split as a map-style data set of transformed Pillow images."""

    def __init__(self, samples: Samples, transform: Callable[[Any], torch.Tensor]) -> None:
        self._paths, self._labels, self._transform = samples.paths, samples.labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        from torchvision.datasets.folder import default_loader

        return self._transform(default_loader(self._paths[row])), int(self._labels[row])
