"""Epochs of batches on the device: uint8 images in channels_last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from hemafast.config import balanced_share
from hemafast.data.augment import POLICIES, Policy
from hemafast.data.batch import Batch, Feed, place
from hemafast.data.feed import DaliFeed, GatherFeed
from hemafast.data.graph import GraphShape
from hemafast.data.source import Images, Resident, open_source
from hemafast.data.stream import ALONE, BatchStream, Process
from hemafast.errors import HemafastError

if TYPE_CHECKING:
    import torch

    from hemafast.data.samples import Samples


class Position(NamedTuple):
    """A place between two batches."""

    epoch: int
    batch: int
    """How many batches of that epoch were delivered."""


class Loader:
    """Batches of one split, for any PyTorch loop: `for images, labels in loader`.

    An iteration is one epoch. `images` are uint8 (n, 3, size, size) in channels_last and `labels` int64 (n,), both on
    the loader's device. Every image comes once per epoch and process group; the last two batches may have other sizes
    (`BatchStream`). `len` is the number of batches. `state_dict` and `load_state_dict` save and restore the position,
    also within an epoch.

    `source` is what another loader of the same images has opened. Raises HemafastError if the data set lacks what
    `shape.source` needs.
    """

    def __init__(self, samples: Samples, stream: BatchStream, shape: GraphShape, source: Images | None = None) -> None:
        if shape.packed_size != samples.packed_size:
            raise HemafastError(
                f"The graph is for squares of {shape.packed_size} px, but these have {samples.packed_size} px.",
                "Use the packed size of the samples.",
            )
        self._samples, self._stream, self._shape = samples, stream, shape
        self._source = open_source(samples, shape) if source is None else source
        self._feed: Feed | None = None
        self._feed_at: Position | None = None
        self._running: object = None  # the latest epoch; batches of an earlier iterator no longer move the position
        self._delivered = self._next = Position(0, 0)

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the next epoch, or of the rest of a restored one, as (images, labels)."""
        for batch in self.epoch():
            yield batch.images, batch.labels

    def set_epoch(self, epoch: int) -> None:
        """Make epoch `epoch`, counted from 0, the next to iterate. A restored position within that epoch is kept.

        Epochs follow by themselves: call this only to jump, or if a framework does.
        """
        if epoch != self._next.epoch:
            self._next = Position(epoch, 0)

    @property
    def images(self) -> int:
        """Images of the split, which all processes together see in an epoch."""
        return len(self._samples)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Images of each batch of an epoch: of this process, and of all processes together."""
        return self._stream.sizes()

    @property
    def position(self) -> Position:
        """After the last delivered batch; after the last batch of an epoch comes batch 0 of the next."""
        epoch, batch = self._delivered
        return Position(epoch + 1, 0) if batch >= len(self) else Position(epoch, batch)

    def again(self, epoch: int, batch: int) -> Batch:
        """Make a batch of any epoch again, without disturbing the current epoch."""
        return self._build(Position(epoch, batch)).next()

    def epoch(self, epoch: int | None = None) -> Iterator[Batch]:
        """All batches of epoch `epoch`; without a number, those of the next one, or of the rest of a restored one.

        Consecutive epochs follow without a pause. After an epoch that was not finished, the next one is its successor,
        but the state stays at the last delivered batch until then.
        """
        return self._epoch(self._next if epoch is None else Position(epoch, 0))

    def _epoch(self, start: Position) -> Iterator[Batch]:
        running = self._running = object()
        feed = self._kept(start) or self._build(start)
        self._next = Position(start.epoch + 1, 0)
        self._feed, self._feed_at = None, None  # the feed is within this epoch until it ends
        for batch in range(start.batch, len(self)):
            ready = feed.next()
            if self._running is running:
                self._delivered = Position(start.epoch, batch + 1)
            yield ready
        if self._running is running:
            self._delivered = self._next
            self._feed, self._feed_at = feed, self._next

    def resized(self, image_size: int) -> Loader:
        """The same batches at another size, from the same position on. Squares on the device are shared, not copied."""
        stream, shape = replace(self._stream, image_size=image_size), replace(self._shape, image_size=image_size)
        other = Loader(self._samples, stream, shape, self._source)
        other.load_state_dict({**self.state_dict(), "image_size": image_size})
        return other

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self._stream.image_size

    def state_dict(self) -> dict[str, Any]:
        """The position after the last delivered batch, and what identifies the batches, as plain data."""
        return {**self.position._asdict(), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that `state` says were delivered: the next iteration is the rest of that epoch.

        Raises HemafastError, and changes nothing, if the state belongs to other batches than this loader's.
        """
        state = self._with_what_was_not_saved(state)
        for name, ours in self._identity().items():
            if name not in state or state[name] != ours:
                raise HemafastError(
                    f"The saved position has {name} = {state.get(name)!r}, but this loader has {ours!r}.",
                    "Continue with the settings, the data and the version of hemafast that the run began with.",
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not (isinstance(epoch, int) and isinstance(batch, int) and epoch >= 0 and 0 <= batch < max(len(self), 1)):
            raise HemafastError(f"The saved position is invalid: epoch {epoch!r}, batch {batch!r}.", "Start a new run.")
        self._delivered = self._next = Position(epoch, batch)
        self._running = None

    def _with_what_was_not_saved(self, state: dict[str, Any]) -> dict[str, Any]:
        """A position of an earlier version, which did not save the number of batches, or lacked fields of a policy."""
        policy = state.get("policy")
        if isinstance(policy, dict):
            state = {**state, "policy": {**Policy().to_plain(), **policy}}
        return {"batches": self._stream.unmerged, "views": 1, **state}

    def _identity(self) -> dict[str, Any]:
        """Everything that determines the batches of all processes, by names that users know."""
        stream, samples = self._stream, self._samples
        return {
            "split": samples.split,
            "data_fingerprint": samples.fingerprint,
            "images": hashlib.sha256(samples.packed.rows.tobytes()).hexdigest(),  # of a subset, which ones
            "pixels": "decoded" if self._shape.encoded else "packed",  # views of files are scaled once, others twice
            "batch_size": stream.batch_size,
            "world_size": stream.process.world_size,
            "policy": stream.policy.to_plain(),
            "sampler": stream.balanced,
            "shuffle": stream.shuffle,
            "seed": stream.seed,
            "image_size": stream.image_size,
            "packed_size": stream.packed_size,
            "batches": stream.batches,
            "views": stream.views,
        }

    def _build(self, start: Position) -> Feed:
        """What makes the batches from `start` on, over the ends of epochs."""
        policy = self._stream.policy
        largest = max((mine for mine, _ in self.sizes), default=self._shape.batch_size)
        shape = replace(self._shape, batch_size=largest * self._stream.views)
        batches = place(self._stream.onwards(*start), self._samples, shape, policy)
        if isinstance(self._source, Resident) and shape.device == "gpu" and not policy.randaugment_ops:
            return GatherFeed(self._source.squares, batches, shape, policy)
        return DaliFeed(self._source, batches, shape, policy)

    def _kept(self, start: Position) -> Feed | None:
        """The feed of the epoch before, if it goes on at `start`. Where all epochs are the same, any may follow."""
        follows = start.batch == 0 if self._stream.repeats else start == self._feed_at
        return self._feed if follows else None


def train_loader(
    samples: Samples,
    *,
    policy: Policy,
    seed: int,
    shape: GraphShape,
    sampler: str = "natural",
    process: Process = ALONE,
    source: Images | None = None,
    views: int = 1,
) -> Loader:
    """Shuffled batches of the training split under a policy; `sampler` as `config.balanced_share` reads it.

    With several `views`, a batch holds that many of each image (`BatchStream`). `source` is what another loader of the
    same images has opened already.
    """
    draws = {"policy": policy, "shuffle": True, "balanced": balanced_share(sampler), "seed": seed, "views": views}
    return _loader(samples, shape, process, source, **draws)


def eval_loader(samples: Samples, *, shape: GraphShape, process: Process = ALONE) -> Loader:
    """Batches in shard order, without any randomness or augmentation."""
    return _loader(samples, shape, process, policy=POLICIES["none"], shuffle=False)


def process_here() -> Process:
    """This process's part of each batch, from torch.distributed if it is initialised."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return Process(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def _loader(
    samples: Samples, shape: GraphShape, process: Process, source: Images | None = None, **draws: Any
) -> Loader:
    stream = BatchStream(
        labels=samples.labels,
        batch_size=shape.batch_size,
        packed_size=shape.packed_size,
        image_size=shape.image_size,
        process=process,
        **draws,
    )
    return Loader(samples, stream, shape, source)
