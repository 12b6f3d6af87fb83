"""All stations by name, and which of them share a process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from hemafast.bench import ceilings, feeding, peer, training
from hemafast.bench.result import CHECKPOINT, COPY, DECODE, LOADER, PRODUCT, STEP, WHOLE
from hemafast.bench.settings import Bench
from hemafast.bench.worker import Station
from hemafast.data.augment import POLICIES

Make = Callable[[Bench], Station]

FILES, TORCHVISION, PLAIN = "loader, files", "loader, torchvision", "step, plain PyTorch"

RATIOS = {LOADER: TORCHVISION, FILES: TORCHVISION, STEP: PLAIN}
"""Our stations and their peers; ratios are taken round by round."""

UNITS = {CHECKPOINT: "checkpoints", PRODUCT: "products", COPY: "copies"}
"""What a station counts, if not images."""


@dataclass(frozen=True, slots=True)
class Group:
    """Stations that share a process."""

    makes: Mapping[str, Make]
    reads_ahead: frozenset[str] = frozenset()
    """Stations that prepare batches ahead."""


def groups(device: str, *, peers: bool) -> list[Group]:
    """All stations for "cpu" or "cuda"; with `peers` also those of a plain PyTorch script."""
    augment: dict[str, Make] = {f"augment, {policy}": partial(feeding.load, None, policy) for policy in POLICIES}
    alone: dict[str, Make] = {
        "read": feeding.read,
        DECODE: feeding.decode,
        **augment,
        FILES: partial(feeding.load, "files", "basic"),
        "hand-over": feeding.hand_over,
        **({"copy to device": feeding.copy_to_device} if device == "cuda" else {}),
        "forward": partial(training.passes, backward=False),
        "backward": partial(training.passes, backward=True),
        "optimizer": training.optimizer,
        "validation": training.validation,
        CHECKPOINT: training.checkpoint,
        PRODUCT: ceilings.matrix_product,
        COPY: ceilings.memory_copy,
    }
    ours = [
        Group(alone, frozenset({*augment, DECODE, FILES, "hand-over"})),
        # In a process of their own: their memory is that of training, and they are compared with each other.
        Group({STEP: training.step, WHOLE: training.end_to_end}),
    ]
    theirs = [Group({TORCHVISION: peer.torchvision_loader}, frozenset({TORCHVISION})), Group({PLAIN: peer.plain_step})]
    return ours + theirs if peers else ours
