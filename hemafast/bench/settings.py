"""What is measured, how long, and on what. Importing this imports nothing heavy, so that a typo is answered at once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hemafast.config import TrainConfig, train_config

if TYPE_CHECKING:
    from hemafast.data.augment import Policy
    from hemafast.data.dataset import Dataset
    from hemafast.data.graph import GraphShape, Source
    from hemafast.data.loader import Loader
    from hemafast.data.samples import Samples
    from hemafast.data.source import Images
    from hemafast.engine.machine import Machine


class Effort(NamedTuple):
    """How much is measured by default."""

    batch_size: int
    rounds: int
    seconds: float
    peers: bool


THOROUGH = Effort(batch_size=32, rounds=5, seconds=2.0, peers=True)
QUICK = Effort(batch_size=8, rounds=3, seconds=0.1, peers=False)
"""Under a minute on two cores; imports and slow training steps take most of it."""


def bench_settings(preset: str | None = None, file: Path | None = None, **asked: Any) -> TrainConfig:
    """Settings of a bench. Without a preset or a file: EfficientNet-B0 under the policy `basic`."""
    usual = {"policy": "basic"} if preset is None and file is None else {}
    given = {name: value for name, value in asked.items() if value is not None}
    return train_config(preset or (None if file else "b0"), file, **{**usual, **given})


@dataclass(frozen=True, slots=True)
class Bench:
    """What is measured, and on what."""

    settings: TrainConfig
    """Settings of the training whose parts are measured."""
    loader_batch_size: int = 64
    """Batch size of the stations that load without training."""
    own_gradients: bool | None = None
    """Whether depthwise convolutions use our own gradients; None lets the machine choose."""
    fused: bool = True
    """Whether batch norms in evaluation mode are fused into convolutions, where nothing is compiled."""

    @property
    def batch_size(self) -> int:
        """Batch size of the training step."""
        from hemafast.engine.plan import batch_size_of

        return batch_size_of(self.settings)

    @property
    def dataset(self) -> Dataset:
        """The prepared data set, opened."""
        from hemafast.data.dataset import open_dataset

        return open_dataset(self.settings.data, self.settings.fold, self.settings.domains)

    @property
    def samples(self) -> Samples:
        """The training split."""
        return self.dataset.samples("train", self.settings.image_size)

    def machine(self, *, tuned: bool = False) -> Machine:
        """The choices for this machine. With `tuned`, also tune the allocator of the whole process."""
        from hemafast.engine.machine import choose_machine, tune_allocator

        machine = choose_machine(
            device=self.settings.device,
            amp=self.settings.amp,
            compiled=self.settings.compile,
            threads=self.settings.threads,
            allocator=tune_allocator() if tuned else None,
        )
        return self._overridden(machine)

    def loader(self, batch_size: int, policy: str | Policy | None = None, source: Source | None = None) -> Loader:
        """Our loader of training images.

        Args:
            batch_size: images per batch.
            policy: augmentation; by default that of the settings.
            source: source of the pixels; by default the one that training chooses on this machine.

        Returns:
            The loader, on the device of the settings.
        """
        from hemafast.data.augment import named_policy
        from hemafast.data.loader import train_loader
        from hemafast.engine.plan import policy_of

        _, graph = self.machine_and_graph()
        shape = replace(graph, batch_size=batch_size, source=source or graph.source)
        chosen = named_policy(policy) if isinstance(policy, str) else policy or policy_of(self.settings)
        return train_loader(
            self.samples,
            policy=chosen,
            seed=self.settings.seed,
            shape=shape,
            sampler=self.settings.sampler,
            source=resident_squares(self) if shape.source == "resident" else None,
        )

    def machine_and_graph(self) -> tuple[Machine, GraphShape]:
        """The choices for this machine with the source of the pixels, and the input graph, as training makes them."""
        from hemafast.engine.plan import machine_and_graph

        dataset, side = self.dataset, self.settings.image_size
        splits = (dataset.samples(split, side) for split in ("train", "val"))
        machine, graph = machine_and_graph(self.settings, self.settings.device, *splits)
        return self._overridden(machine), graph

    def _overridden(self, machine: Machine) -> Machine:
        return machine if self.own_gradients is None else replace(machine, own_gradients=self.own_gradients)

    def to_plain(self) -> dict[str, Any]:
        """What --json writes: the settings that a rate depends on, without the path of the data."""
        network = ("model", "image_size", "batch_size", "freeze_stages")
        machine = ("threads", "device", "amp", "compile", "compile_mode", "capture")
        names = (*network, "policy", "input", *machine)
        ours = ("loader_batch_size", "own_gradients", "fused")
        return {name: getattr(self.settings, name) for name in names} | {name: getattr(self, name) for name in ours}


@cache
def resident_squares(bench: Bench) -> Images:
    """The squares of the training split on the device: one copy for all loaders of a process."""
    from hemafast.data.source import Resident

    return Resident(bench.samples, bench.machine().device)
