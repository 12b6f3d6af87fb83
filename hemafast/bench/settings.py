"""What is measured, and on what; and what every station needs of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hemafast.config import TrainConfig
from hemafast.data.augment import Policy
from hemafast.data.dataset import Dataset, Samples, open_dataset
from hemafast.data.graph import GraphShape, Source
from hemafast.data.loader import Loader, train_loader
from hemafast.engine.machine import Machine, choose_machine, tune_allocator
from hemafast.engine.plan import batch_size_of, policy_of
from hemafast.preparation.split import TRAIN


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and on what."""

    settings: TrainConfig
    """Of the training whose objects are measured."""
    loader_batch_size: int = 64
    """Batch size of the stations that load without training."""
    own_gradients: bool | None = None
    """Of depthwise convolutions; None is what the machine chooses."""
    fused: bool = True
    """Whether batch norms in evaluation mode are fused into convolutions, where nothing is compiled."""

    @property
    def data(self) -> Path:
        """The prepared data set."""
        return self.settings.data

    @property
    def model(self) -> str:
        """Name of the timm model."""
        return self.settings.model

    @property
    def image_size(self) -> int:
        """Side in pixels of the network's input."""
        return self.settings.image_size

    @property
    def batch_size(self) -> int:
        """Of the training step."""
        return batch_size_of(self.settings)

    def with_settings(self, **changes: Any) -> Bench:
        """The same bench with other settings of the training."""
        return replace(self, settings=replace(self.settings, **changes))

    @property
    def dataset(self) -> Dataset:
        """The prepared data set, opened."""
        return open_dataset(self.data, self.settings.fold, self.settings.domains)

    @property
    def samples(self) -> Samples:
        """The training split."""
        return self.dataset.samples(TRAIN, self.image_size)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.dataset.info.classes)

    def machine(self, *, tuned: bool = False) -> Machine:
        """The machine's choices; `tuned` tunes the allocator too, for the whole process."""
        settings = self.settings
        allocator = tune_allocator() if tuned else None
        machine = choose_machine(
            device=settings.device,
            amp=settings.amp,
            compiled=settings.compile,
            threads=settings.threads,
            allocator=allocator,
        )
        return machine if self.own_gradients is None else replace(machine, own_gradients=self.own_gradients)

    def loader(self, source: Source, batch_size: int, policy: Policy | None = None) -> Loader:
        """Our loader of training images, by default under the policy of the settings."""
        samples, machine = self.samples, self.machine()
        shape = GraphShape(
            device=machine.loader_device,
            source=source,
            packed_size=samples.packed_size,
            image_size=self.image_size,
            batch_size=batch_size,
            threads=machine.loader_threads,
        )
        return train_loader(samples, policy=policy or policy_of(self.settings), seed=0, shape=shape)

    def to_plain(self) -> dict[str, Any]:
        """What --json writes: the settings that a rate depends on, without the path of the data."""
        names = ("model", "image_size", "batch_size", "policy", "threads", "device", "amp", "compile", "freeze_stages")
        return {name: getattr(self.settings, name) for name in names} | {
            "loader_batch_size": self.loader_batch_size,
            "own_gradients": self.own_gradients,
            "fused": self.fused,
        }


def wait_for(device: str) -> None:
    """A GPU works on after the call returns; a time taken before it is done means nothing."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
