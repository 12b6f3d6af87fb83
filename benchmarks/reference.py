"""The reference pipeline's training loop, as its README describes it: a script as many people write it.

    python benchmarks/reference.py --train DIR --val DIR --seed 0 --seconds 600 --json points.json

Class folders, Pillow and torchvision's transforms, AdamW at a constant 1e-4, batches of 32 at 224 px, fp32, eager,
NCHW, predictions gathered in Python lists and scored by scikit-learn each epoch, `.item()` each step. It is nobody's
fastest loop, and nothing in it is slow on purpose.

Two things differ from the original so that `time_to_score.py` compares like with like: network and first weights are
those of the other side, and validation is not augmented. The seed is set, and the time is written down.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import psutil
import timm
import torch
import typer
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from hemafast.weights import load_initial_weights

SIZE = 224

Batches = DataLoader[tuple[Tensor, Tensor]]


def make_loaders(
    train: Path, val: Path, mean: Sequence[float], std: Sequence[float], workers: int
) -> tuple[Batches, Batches]:
    """Shuffled, augmented batches of 32 of the one folder, and batches as they come of the other."""
    ending = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    augmented = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.RandomResizedCrop(SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.RandomRotation(10),
            *ending,
        ]
    )
    plain = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(SIZE), *ending])
    training, validation = ImageFolder(train, augmented), ImageFolder(val, plain)
    if training.classes != validation.classes:
        raise typer.BadParameter(f"{train} and {val} hold other classes.")
    settings: dict[str, Any] = {"batch_size": 32, "num_workers": workers, "persistent_workers": workers > 0}
    return DataLoader(training, shuffle=True, **settings), DataLoader(validation, **settings)


def train_epoch(model: nn.Module, batches: Batches, optimizer: torch.optim.Optimizer) -> float:
    """Mean loss of an epoch."""
    model.train()
    criterion = nn.CrossEntropyLoss()
    total, predicted, actual = 0.0, [], []
    for images, labels in batches:
        optimizer.zero_grad()
        logits = model(images)
        loss = criterion(logits, labels)
        loss.backward()
        optimizer.step()
        total += loss.item() * len(labels)
        predicted.extend(logits.argmax(1).tolist())
        actual.extend(labels.tolist())
    print(f"training: loss {total / len(actual):.4f}, macro-F1 {f1_score(actual, predicted, average='macro'):.4f}")
    return total / len(actual)


@torch.no_grad()
def validate(model: nn.Module, batches: Batches) -> tuple[float, list[int]]:
    """Macro-F1 of the validation images, and what each is taken for."""
    model.eval()
    predicted, actual = [], []
    for images, labels in batches:
        predicted.extend(model(images).argmax(1).tolist())
        actual.extend(labels.tolist())
    return float(f1_score(actual, predicted, average="macro", labels=sorted(set(actual)))), predicted


def main(
    train: Annotated[Path, typer.Option(help="Class folders to learn from.")],
    val: Annotated[Path, typer.Option(help="Class folders to validate on.")],
    json_file: Annotated[Path, typer.Option("--json", help="Where seconds and scores go, after each epoch.")],
    model_name: Annotated[str, typer.Option("--model", help="A timm model.")] = "tf_efficientnet_lite0",
    seed: Annotated[int, typer.Option(help="Of head, order and augmentation.")] = 0,
    seconds: Annotated[
        float, typer.Option(help="Start no further epoch after this many seconds of the process.")
    ] = 600.0,
    target: Annotated[float, typer.Option(help="Nor after this macro-F1.")] = 1.0,
    workers: Annotated[int, typer.Option(help="Processes that load.")] = 2,
    answers_file: Annotated[
        Path | None, typer.Option("--answers", help="Where the class of each validation image goes, after each epoch.")
    ] = None,
) -> None:
    """Train until the time is over or the target reached."""
    started = psutil.Process().create_time()
    torch.manual_seed(seed)
    classes = len([folder for folder in train.iterdir() if folder.is_dir()])
    model = timm.create_model(model_name, num_classes=classes)
    load_initial_weights(model, model_name, pretrained="yes", file=None)
    shown = model.pretrained_cfg
    train_batches, val_batches = make_loaders(train, val, shown["mean"], shown["std"], workers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    images: Any = val_batches.dataset
    points: list[dict[str, float]] = []
    answers: list[dict[str, Any]] = []
    while not points or (points[-1]["f1_macro"] < target and time.time() - started < seconds):
        loss = train_epoch(model, train_batches, optimizer)
        f1, predicted = validate(model, val_batches)
        points.append({"seconds": time.time() - started, "f1_macro": f1, "train_loss": loss})
        print(f"epoch {len(points)}: {points[-1]['seconds']:.1f} s, macro-F1 {f1:.4f}", flush=True)
        json_file.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")
        if answers_file is not None:
            named = {
                Path(file).name: images.classes[index]
                for (file, _), index in zip(images.samples, predicted, strict=True)
            }
            answers.append({**points[-1], "answers": named})
            answers_file.write_text(json.dumps(answers) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
