"""All stations by the names of the table, and which of them share a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hemafast.bench import ceilings, feeding, plain, training
from hemafast.bench.settings import Bench
from hemafast.bench.worker import Station
from hemafast.data.augment import POLICIES

Make = Callable[[Bench], Station]

LOADER, STEP, WHOLE, DECODE, CHECKPOINT = "augment, basic", "step", "end to end", "decode", "checkpoint"
PRODUCT, COPY = "matrix product", "memory copy"
FILES, TORCHVISION, PLAIN = "loader, files", "loader, torchvision", "step, plain PyTorch"

RATIOS = {LOADER: TORCHVISION, FILES: TORCHVISION, STEP: PLAIN}
"""Stations that have a plain counterpart; the ratio is taken round by round."""

UNITS = {CHECKPOINT: "checkpoints", PRODUCT: "products", COPY: "copies"}
"""What stations count, if not images."""


@dataclass(frozen=True, slots=True)
class Group:
    """Stations that are measured in one process."""

    makes: Mapping[str, Make]
    reads_ahead: frozenset[str] = frozenset()
    """Those that have batches ready before they are asked for."""


def groups(device: str, *, peers: bool) -> list[Group]:
    """All stations for "cpu" or "cuda"; `peers` are those of a plain PyTorch script."""
    augment: dict[str, Make] = {f"augment, {policy}": partial(feeding.augment, policy) for policy in POLICIES}
    alone: dict[str, Make] = {
        "read": feeding.read,
        DECODE: feeding.decode,
        **augment,
        FILES: feeding.files_loader,
        "hand-over": feeding.hand_over,
        **({"copy to device": feeding.copy_to_device} if device == "cuda" else {}),
        "forward": training.forward,
        "backward": training.backward,
        "optimizer": training.optimizer,
        "validation": training.validation,
        CHECKPOINT: training.checkpoint,
        PRODUCT: ceilings.matrix_product,
        COPY: ceilings.memory_copy,
    }
    ours = [
        Group(alone, frozenset({*augment, DECODE, FILES, "hand-over"})),
        # By themselves: their memory is that of a training, and they are compared with each other.
        Group({STEP: training.step, WHOLE: training.end_to_end}),
    ]
    theirs = [
        Group({TORCHVISION: plain.torchvision_loader}, frozenset({TORCHVISION})),
        Group({PLAIN: plain.plain_step}),
    ]
    return ours + theirs if peers else ours
