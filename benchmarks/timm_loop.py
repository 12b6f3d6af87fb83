"""A loop around timm by somebody who knows how to make it fast, without hemafast.

    python benchmarks/timm_loop.py --train DIR --val DIR --weights FILE --json points.json

Every image is decoded and resized once, and its pixels stay in memory. Batches are cropped, flipped and turned as one
tensor. The network is in channels_last, AdamW is fused, the rate follows one cycle, labels are smoothed. Network, size,
batch, epochs, peak rate and smoothing are those of `hemafast train --preset quick`.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import timm
import torch
import typer
from PIL import Image
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

SIZE, KEPT = 128, 144
"""Pixels a side of what the network sees, and of what is kept in memory."""
BATCH, PEAK_RATE, SMOOTHING = 32, 3e-3, 0.1


def pixels(folder: Path) -> tuple[Tensor, Tensor]:
    """All images of class folders, (n, 3, KEPT, KEPT) uint8 in channels_last, and their labels."""
    files = ImageFolder(str(folder)).samples
    squares = np.stack([np.asarray(_square(path)) for path, _ in files])
    return torch.from_numpy(squares).permute(0, 3, 1, 2), torch.tensor([label for _, label in files])


def _square(path: str) -> Image.Image:
    image = Image.open(path).convert("RGB")
    scale = KEPT / min(image.size)
    image = image.resize([max(KEPT, round(side * scale)) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - KEPT) // 2 for side in image.size)
    return image.crop((left, top, left + KEPT, top + KEPT))


def augmented(batch: Tensor) -> Tensor:
    """A random crop of the batch, mirrored and turned by a quarter at random."""
    left, top = (int(place) for place in torch.randint(KEPT - SIZE + 1, (2,)))
    batch = batch[:, :, top : top + SIZE, left : left + SIZE]
    flips = [axis for axis in (2, 3) if torch.rand(()) < 0.5]
    batch = batch.flip(flips) if flips else batch
    return batch.transpose(2, 3) if torch.rand(()) < 0.5 else batch


class Network(nn.Module):
    """timm's network, with the normalisation of its weights before it."""

    def __init__(self, name: str, classes: int, weights: Path) -> None:
        super().__init__()
        known = {"file": str(weights)}
        self.body = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=known, num_classes=classes)
        self.mean, self.std = (
            255 * torch.tensor(self.body.pretrained_cfg[part]).view(1, 3, 1, 1) for part in ("mean", "std")
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images of uint8."""
        scaled = (images.float() - self.mean) / self.std
        logits: Tensor = self.body(scaled.contiguous(memory_format=torch.channels_last))
        return logits


@torch.no_grad()
def validate(network: Network, images: Tensor, labels: Tensor) -> float:
    """Macro-F1 of the middle of each image."""
    network.eval()
    edge = (KEPT - SIZE) // 2
    middle = images[:, :, edge : edge + SIZE, edge : edge + SIZE]
    predicted = torch.cat([network(batch).argmax(1) for batch in torch.split(middle, 2 * BATCH)])
    return float(f1_score(labels, predicted, average="macro", labels=torch.unique(labels)))


def main(
    train: Annotated[Path, typer.Option(help="Class folders to learn from.")],
    val: Annotated[Path, typer.Option(help="Class folders to validate on.")],
    weights: Annotated[Path, typer.Option(help="First weights, with timm's names.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where seconds and scores go, after each epoch.")],
    model_name: Annotated[str, typer.Option("--model", help="A timm model.")] = "tf_efficientnet_lite0",
    seed: Annotated[int, typer.Option(help="Of head, order and augmentation.")] = 0,
    epochs: Annotated[int, typer.Option(help="Length of the cycle.")] = 6,
) -> None:
    """Train for one cycle."""
    started = psutil.Process().create_time()
    torch.manual_seed(seed)
    images, labels = pixels(train)
    held_out = pixels(val)
    network = Network(model_name, len(torch.unique(labels)), weights).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=PEAK_RATE, fused=True)
    updates = epochs * math.ceil(len(labels) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=PEAK_RATE, total_steps=updates)
    criterion = nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
    points: list[dict[str, float]] = []
    for _ in range(epochs):
        network.train()
        for rows in torch.split(torch.randperm(len(labels)), BATCH):
            optimizer.zero_grad()
            criterion(network(augmented(images[rows])), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        score = validate(network, *held_out)
        points.append({"seconds": time.time() - started, "f1_macro": score})
        print(f"epoch {len(points)}: {points[-1]['seconds']:.1f} s, macro-F1 {score:.4f}", flush=True)
        json_file.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
