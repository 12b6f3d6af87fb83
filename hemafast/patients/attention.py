"""Labels of patients from their cells: multiple-instance learning with gated attention on features.

A patient is a bag of cells, and only the bag has a label. Each cell gets a weight, the weights of a patient add up to
1, and the weighted mean of the cells is classified (Ilse, Tomczak and Welling 2018, arXiv 1802.04712). The network that
gives the features stays as it is: what is learned has some ten thousand parameters.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Len
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hemafast.errors import HemafastError
from hemafast.files import write_tensors
from hemafast.reading import cause
from hemafast.recorded import Recorded
from hemafast.regular import refuse_special

Features = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

AXES, HIDDEN, SIGHT = 64, 32, 16
"""Principal axes of the features, width of a cell's description, and of its attention."""
_STEPS, _RATE, _DECAY, _DROPOUT = 300, 3e-3, 0.05, 0.25
_CELLS, _PATIENTS = 128, 64  # of each patient in a step, and patients in a step
_FORMAT = "hemafast attention 1"


class GatedAttention(nn.Module):
    """Features of cells to logits of patients.

    Attributes:
        mean: (d,), of the features of training cells.
        axes: (d, k), their principal axes, scaled so that the mean spread along them is 1.
    """

    mean: Tensor
    axes: Tensor

    def __init__(self, features: int, axes: int, labels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("axes", torch.zeros(features, axes))
        self.describe = nn.Sequential(nn.Dropout(_DROPOUT), nn.Linear(axes, HIDDEN), nn.ReLU())
        self.sight, self.gate = nn.Linear(HIDDEN, SIGHT), nn.Linear(HIDDEN, SIGHT)
        self.weigh, self.classify = nn.Linear(SIGHT, 1), nn.Linear(HIDDEN, labels)

    def reduced(self, features: Tensor) -> Tensor:
        """(n, k): features (n, d) along the axes."""
        return (features - self.mean) @ self.axes

    def forward(self, cells: Tensor, patient: Tensor, patients: int) -> tuple[Tensor, Tensor]:
        """Logits and attention.

        Args:
            cells: (n, k), as `reduced` gives them.
            patient: (n,), the patient of each cell, from 0; each has a cell.
            patients: how many there are.

        Returns:
            (patients, labels), and (n,), which adds up to 1 over the cells of a patient.
        """
        seen = self.describe(cells)
        weight = self.weigh(self.sight(seen).tanh() * self.gate(seen).sigmoid()).squeeze(1)
        highest = weight.new_full((patients,), -torch.inf).scatter_reduce(0, patient, weight.detach(), "amax")
        grown = (weight - highest[patient]).exp()
        attention = grown / grown.new_zeros(patients).index_add(0, patient, grown)[patient]
        pooled = seen.new_zeros(patients, seen.shape[1]).index_add(0, patient, attention[:, None] * seen)
        return self.classify(pooled), attention


def fit(features: Features, patient: Places, labels: Places, classes: int, seed: int = 0) -> GatedAttention:
    """Train a head. Each label counts the same, however many patients have it.

    Args:
        features: (n, d), finite.
        patient: (n,), the patient of each cell, from 0; each has a cell.
        labels: (patients,), from 0; each has a patient.
        classes: how many labels there are.
        seed: of the initial weights, and of the cells that a step sees.

    Returns:
        The head, in evaluation mode. The same input gives the same head, and random states stay as they were.
    """
    generator = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = _head_for(features, classes)
        cells, targets = head.reduced(torch.from_numpy(features)), torch.from_numpy(labels)
        counts = torch.bincount(targets, minlength=classes).float()
        loss = nn.CrossEntropyLoss(len(labels) / (classes * counts))
        optimizer = torch.optim.AdamW(head.parameters(), _RATE, weight_decay=_DECAY, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _RATE, total_steps=_STEPS)
        of_patient = _members(patient, len(labels))
        for _, chosen in zip(range(_STEPS), _batches(len(labels), generator), strict=False):
            some = [generator.permutation(of_patient[one])[:_CELLS] for one in chosen]
            rows = torch.from_numpy(np.concatenate(some))
            places = torch.repeat_interleave(torch.arange(len(some)), torch.tensor([*map(len, some)]))
            logits, _ = head(cells[rows], places, len(some))
            optimizer.zero_grad()
            loss(logits, targets[chosen]).backward()
            optimizer.step()
            schedule.step()
    return head.eval()


@torch.inference_mode()
def apply(head: GatedAttention, features: Features, patient: Places, patients: int) -> tuple[Features, Features]:
    """What a head says of patients.

    Args:
        head: as `fit` or `load_head` gives it.
        features: (n, d), finite.
        patient: (n,), the patient of each cell, from 0; each has a cell.
        patients: how many there are.

    Returns:
        Probabilities (patients, labels), and attention (n,), which adds up to 1 over the cells of a patient.
    """
    logits, attention = head(head.reduced(torch.from_numpy(features)), torch.from_numpy(patient), patients)
    return logits.softmax(dim=1).numpy(), attention.numpy()


def _head_for(features: Features, classes: int) -> GatedAttention:
    """A head with random weights on the principal axes of these features."""
    mean = features.mean(axis=0, dtype=np.float64)
    spread = np.cov((features - mean).T, ddof=0) if len(features) > 1 else np.eye(features.shape[1])
    values, axes = np.linalg.eigh(np.atleast_2d(spread))
    kept = min(AXES, features.shape[1])
    scale = np.sqrt(max(float(values[-kept:].mean()), 1e-12))
    head = GatedAttention(features.shape[1], kept, classes)
    head.mean.copy_(torch.from_numpy(mean))
    head.axes.copy_(torch.from_numpy(axes[:, : -kept - 1 : -1] / scale))
    return head


def _members(patient: Places, patients: int) -> list[Places]:
    order = np.argsort(patient, kind="stable")
    return np.split(order, np.cumsum(np.bincount(patient, minlength=patients))[:-1])


def _batches(patients: int, generator: np.random.Generator) -> Iterator[Places]:
    """Endless: all patients in random order, a few at a time."""
    while True:
        order = generator.permutation(patients)
        yield from np.array_split(order, -(-patients // _PATIENTS))


class HeadCard(Recorded):
    """What a stored head is for."""

    labels: Annotated[list[str], Len(2)]
    network: str
    patients: Annotated[int, Ge(1)]


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A trained head, and what it is for."""

    module: GatedAttention
    labels: tuple[str, ...]
    network: str
    """sha256 of the model's file whose features it takes."""
    patients: int
    """That it was trained on."""


def save_head(file: Path, head: Head) -> None:
    """Write a head as safetensors, completely or not at all. Raises OSError."""
    card = {"labels": list(head.labels), "network": head.network, "patients": head.patients}
    tensors = {name: tensor.contiguous() for name, tensor in head.module.state_dict().items()}
    write_tensors(file, tensors, {"format": _FORMAT, "card": json.dumps(card)})


def load_head(file: Path, network: str) -> Head:
    """A head from a file. Raises HemafastError if it is damaged, or takes the features of another network."""
    try:
        refuse_special(file)
        with safe_open(file, framework="pt") as content:
            metadata = content.metadata() or {}
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118 - no mapping
        if metadata.get("format") != _FORMAT:
            raise ValueError("it is no head of `hemafast patients`")
        card = HeadCard.model_validate_json(metadata["card"])
        module = _module_of(tensors, len(card.labels))
    except (SafetensorError, OSError, ValueError, RuntimeError, KeyError) as error:
        said = " ".join(cause(error).split())[:200] if isinstance(error, OSError | ValueError) else str(error)[:200]
        raise HemafastError(f"{file} cannot be read ({said}).", "Train it again with --patient-labels.") from error
    if card.network != network:
        raise HemafastError(f"{file} takes the features of another model.", "Name the run that it was trained with.")
    return Head(module, tuple(card.labels), card.network, card.patients)


def _module_of(tensors: dict[str, Tensor], labels: int) -> GatedAttention:
    axes = tensors["axes"]
    if axes.ndim != 2 or not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise ValueError("its numbers are not finite, or axes are no matrix")
    features, kept = axes.shape
    module = GatedAttention(features, kept, labels)
    module.load_state_dict(tensors)
    return module.eval()
