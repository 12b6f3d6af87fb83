"""The plain PyTorch script's side: the reference's loader, and a step as it comes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any

from hemafast.bench.settings import Bench, wait_for
from hemafast.bench.worker import Done, Station
from hemafast.data.dataset import Samples

if TYPE_CHECKING:
    import torch


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
    files: Any = _Files(bench.samples, reference)
    batches: Any = DataLoader(
        files,
        batch_size=bench.loader_batch_size,
        shuffle=True,
        num_workers=bench.machine().loader_threads,
        persistent_workers=True,
    )
    return (Done(len(labels)) for _ in count() for _, labels in batches)


def plain_step(bench: Bench) -> Station:
    """The training step of a plain script: eager, NCHW, fp32, AdamW and allocator as they come."""
    import timm
    import torch

    from hemafast.model import sized_options

    device, classes = bench.machine().device, bench.classes
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
        wait_for(device)
        yield Done(bench.batch_size)


class _Files:
    """The split's files as a map-style data set: Pillow image, then `transform`."""

    def __init__(self, samples: Samples, transform: Callable[[Any], torch.Tensor]) -> None:
        self._paths, self._labels, self._transform = samples.paths, samples.labels, transform

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        from torchvision.datasets.folder import default_loader

        return self._transform(default_loader(self._paths[row])), int(self._labels[row])
