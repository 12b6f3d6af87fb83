"""What is measured, and on what; and what every station needs of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from hemafast.config import Amp, Compile, Device
from hemafast.data.augment import POLICIES
from hemafast.data.dataset import Samples, open_dataset
from hemafast.data.graph import GraphShape, Source
from hemafast.data.loader import Loader, train_loader
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.prepare.split import TRAIN


class Effort(NamedTuple):
    """How much is measured where nothing else was asked for."""

    batch_size: int
    rounds: int
    seconds: float
    peers: bool


THOROUGH = Effort(batch_size=32, rounds=5, seconds=2.0, peers=True)
QUICK = Effort(batch_size=8, rounds=3, seconds=0.1, peers=False)
"""Under a minute on two cores, most of it imports and training steps of a second."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and on what."""

    data: Path
    model: str = "efficientnet_b0"
    image_size: int = 224
    batch_size: int = THOROUGH.batch_size
    loader_batch_size: int = 64
    threads: int | None = None
    device: Device = "auto"
    amp: Amp = "auto"
    compile: Compile = "auto"
    freeze_stages: int = 0
    own_gradients: bool | None = None
    """Of depthwise convolutions; None is what the machine chooses."""
    folded: bool = True
    """Whether convolutions do the work of batch norms in evaluation mode, where nothing is compiled."""

    @property
    def samples(self) -> Samples:
        """The training split."""
        return open_dataset(self.data).samples(TRAIN, self.image_size)

    @property
    def classes(self) -> int:
        """How many there are."""
        return len(open_dataset(self.data).info.classes)

    def machine(self, *, tuned: bool = False) -> Machine:
        """The machine's choices; `tuned` touches the allocator too, which is the whole process's."""
        allocator = tune_allocator() if tuned else None
        machine = choose_machine(
            device=self.device, amp=self.amp, compiled=self.compile, threads=self.threads, allocator=allocator
        )
        return machine if self.own_gradients is None else replace(machine, own_gradients=self.own_gradients)

    def loader(self, source: Source, batch_size: int, policy: str = "basic") -> Loader:
        """Our loader of training images."""
        samples, machine = self.samples, self.machine()
        shape = GraphShape(
            device=machine.loader_device,
            source=source,
            packed_size=samples.packed_size,
            image_size=self.image_size,
            batch_size=batch_size,
            threads=machine.loader_threads,
        )
        return train_loader(samples, policy=POLICIES[policy], seed=0, shape=shape)


def wait_for(device: str) -> None:
    """A GPU works on after the call returns; a time taken before it is done means nothing."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
