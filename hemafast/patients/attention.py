"""Labels of patients from their cells: multiple-instance learning with gated attention on features.

A patient is a bag of cells, and only the bag has a label. Each cell gets a weight, the weights of a patient add up to
1, and the weighted mean of the cells is classified (Ilse, Tomczak and Welling 2018, arXiv 1802.04712). The network that
gives the features stays as it is: what is learned has some two thousand parameters, which begin as, and are held near,
a logistic regression on the plain mean. Patients are few, so all are seen in each step of L-BFGS; Adam, which gives all
axes the same pace, found less in them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
from hemafast.files import refuse_overwritten, write_tensors
from hemafast.reading import cause
from hemafast.recorded import Recorded
from hemafast.regular import refuse_special

Features = npt.NDArray[np.float32]
Places = npt.NDArray[np.int64]

AXES, SIGHT = 64, 16
"""Principal axes of the features, and width of the attention."""
_STEPS = 100
_HELD, _HELD_ATTENTION = 1.0, 5.0  # inverse variances of the parameters; of a logistic regression, 1 / C
_CELLS = 512  # of each patient that are learned from
_TINY = 1e-12
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
        self.sight, self.gate = nn.Linear(axes, SIGHT), nn.Linear(axes, SIGHT)
        self.weigh, self.classify = nn.Linear(SIGHT, 1, bias=False), nn.Linear(axes, labels)
        for parameter in (*self.weigh.parameters(), *self.classify.parameters()):
            nn.init.zeros_(parameter)

    def reduced(self, features: Tensor) -> Tensor:
        """(n, k): features (n, d) along the axes."""
        return (features - self.mean) @ self.axes

    def strain(self) -> Tensor:
        """What is added to the loss so that the parameters stay small, those of the attention above all."""
        attention = [*self.sight.parameters(), *self.gate.parameters(), *self.weigh.parameters()]
        held = _HELD * _squared(self.classify.parameters()) + _HELD_ATTENTION * _squared(attention)
        return held / 2

    def forward(self, cells: Tensor, patient: Tensor, patients: int) -> tuple[Tensor, Tensor]:
        """Logits and attention.

        Args:
            cells: (n, k), as `reduced` gives them.
            patient: (n,), the patient of each cell, from 0; each has a cell.
            patients: how many there are.

        Returns:
            (patients, labels), and (n,), which adds up to 1 over the cells of a patient.
        """
        weight = self.weigh(self.sight(cells).tanh() * self.gate(cells).sigmoid()).squeeze(1)
        highest = weight.new_full((patients,), -torch.inf).scatter_reduce(0, patient, weight.detach(), "amax")
        grown = (weight - highest[patient]).exp()
        attention = grown / grown.new_zeros(patients).index_add(0, patient, grown)[patient]
        pooled = cells.new_zeros(patients, cells.shape[1]).index_add(0, patient, attention[:, None] * cells)
        return self.classify(pooled), attention


def _squared(parameters: Iterable[Tensor]) -> Tensor:
    return torch.stack([one.square().sum() for one in parameters]).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What heads learn from, whatever the labels are: cells along the principal axes of their features."""

    mean: Tensor
    """(d,)."""
    axes: Tensor
    """(d, k), as `GatedAttention.axes`."""
    cells: Tensor
    """(n, k): all cells of a patient, or a draw."""
    patient: Tensor
    """(n,), the patient of each cell, from 0."""

    def head(self, classes: int, seed: int) -> GatedAttention:
        """A head with random weights on these axes. Random states stay as they were."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            features, kept = self.axes.shape
            head = GatedAttention(features, kept, classes)
        head.mean.copy_(self.mean)
        head.axes.copy_(self.axes)
        return head


def look_at(features: Features, patient: Places, patients: int, seed: int = 0) -> Seen:
    """Reduce the cells of some patients, for one head or for many.

    Args:
        features: (n, d), finite.
        patient: (n,), the patient of each cell, from 0; each has a cell.
        patients: how many there are.
        seed: of the cells that are learned from.
    """
    from sklearn.decomposition import PCA

    rows = np.sort(_drawn(patient, patients, np.random.default_rng(seed)))
    kept = min(AXES, *features.shape)
    found = PCA(kept, svd_solver="randomized", random_state=seed).fit(features)
    scale = np.sqrt(max(float(found.explained_variance_.mean()), _TINY)) if len(features) > 1 else 1.0
    mean = torch.from_numpy(np.asarray(found.mean_, np.float32))
    axes = torch.from_numpy(np.asarray(found.components_.T / scale, np.float32))
    return Seen(mean, axes, (torch.from_numpy(features[rows]) - mean) @ axes, torch.from_numpy(patient[rows]))


def fit(seen: Seen, labels: Places, classes: int, seed: int = 0) -> GatedAttention:
    """Train a head. Each label counts the same, however many patients have it.

    Args:
        seen: the cells of the patients.
        labels: (patients,), from 0; each has a patient.
        classes: how many labels there are.
        seed: of the initial weights.

    Returns:
        The head, in evaluation mode. The same input gives the same head, and random states stay as they were.
    """
    head, targets = seen.head(classes, seed), torch.from_numpy(labels)
    counts = torch.bincount(targets, minlength=classes).float()
    loss = nn.CrossEntropyLoss(len(labels) / (classes * counts))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=_STEPS, line_search_fn="strong_wolfe")

    def step() -> Tensor:
        optimizer.zero_grad()
        logits, _ = head(seen.cells, seen.patient, len(labels))
        found: Tensor = loss(logits, targets) + head.strain() / len(labels)
        found.backward()  # type: ignore[no-untyped-call] # of torch
        return found

    optimizer.step(step)  # type: ignore[no-untyped-call] # of torch
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


def _drawn(patient: Places, patients: int, generator: np.random.Generator) -> Places:
    """Places of the cells that are learned from: all of a patient, or a draw."""
    order = np.argsort(patient, kind="stable")
    of_patient = np.split(order, np.cumsum(np.bincount(patient, minlength=patients))[:-1])
    return np.concatenate([generator.permutation(cells)[:_CELLS] for cells in of_patient])


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
        refuse_overwritten(tensors, metadata, "weights")
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
