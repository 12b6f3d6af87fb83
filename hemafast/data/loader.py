"""Epochs of batches on the device: uint8 images that torch sees as channels_last."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, tee
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from hemafast.config import balanced_share
from hemafast.data.augment import POLICIES, Policy, Views, named_policy
from hemafast.data.dataset import Dataset, Samples
from hemafast.data.graph import GraphShape, Source, build_graph, default_threads
from hemafast.data.source import open_source
from hemafast.data.stream import ALONE, BatchStream, Draw, Process
from hemafast.errors import HemafastError
from hemafast.preparation.split import VAL

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch on the device."""

    images: torch.Tensor
    """uint8 (n, 3, image_size, image_size) in channels_last."""
    labels: torch.Tensor
    """int64 (n,)."""
    rows: torch.Tensor
    """int64 (n,) on the host: which images of the split these are."""


class Position(NamedTuple):
    """A place between two batches."""

    epoch: int
    batch: int
    """Of that epoch, how many have been delivered."""


class Loader:
    """Batches of one split, for any PyTorch loop: `for images, labels in loader`.

    An iteration is one epoch. `images` are uint8 (n, 3, size, size) in channels_last and `labels` int64 (n,), both on
    the loader's device. Every image comes once per epoch and process group, the shorter last batch included. `len` is
    the number of batches. `state_dict` and `load_state_dict` save and restore the position, also within an epoch.

    Raises HemafastError if the data set does not hold its images in the form that `shape` names.
    """

    def __init__(self, samples: Samples, stream: BatchStream, shape: GraphShape) -> None:
        if shape.packed_size != samples.packed_size:
            raise HemafastError(
                f"The graph is for squares of {shape.packed_size} px, and these have {samples.packed_size}.",
                "Take the packed size from the samples.",
            )
        self._samples, self._stream, self._shape = samples, stream, shape
        self._images = open_source(samples, shape)
        self._pipeline: Any = None
        self._pipeline_at: Position | None = None
        self._running: object = None  # the latest epoch; an earlier one that is still asked no longer counts
        self._delivered = self._next = Position(0, 0)

    def __len__(self) -> int:
        return len(self._stream)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The batches of the next epoch, or the rest of a restored one, as (images, labels)."""
        for batch in self.epoch():
            yield batch.images, batch.labels

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be epoch `epoch`, counted from 0; within a restored epoch, its rest.

        Epochs follow by themselves: call this only to jump, or where a framework does.
        """
        if epoch != self._next.epoch:
            self._next = Position(epoch, 0)

    @property
    def images(self) -> int:
        """Images an epoch, of all processes together."""
        return len(self._samples)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Images of each batch of an epoch: of this process, and of all processes together."""
        return self._stream.sizes()

    @property
    def position(self) -> Position:
        """Behind the last batch that was delivered; behind the last of an epoch is the first of the next."""
        epoch, batch = self._delivered
        return Position(epoch + 1, 0) if batch >= len(self) else Position(epoch, batch)

    def again(self, epoch: int, batch: int) -> Batch:
        """A batch of any epoch once more, whatever is being delivered otherwise."""
        pipeline = self._build(Position(epoch, batch))
        return self._to_batch(*pipeline.run(self._stream_of_device()))

    def epoch(self, epoch: int | None = None) -> Iterator[Batch]:
        """The batches of epoch `epoch` from its first; or of the next one, which a loaded state may have begun.

        Epochs asked for in turn follow without a pause. One that is broken off counts as over here, while the state of
        the loader stays where it was broken off until the next one begins.
        """
        return self._epoch(self._next if epoch is None else Position(epoch, 0))

    def _epoch(self, start: Position) -> Iterator[Batch]:
        running = self._running = object()
        pipeline = self._pipeline if start == self._pipeline_at else None
        if pipeline is None:
            pipeline = self._build(start)
        self._next = Position(start.epoch + 1, 0)
        self._pipeline, self._pipeline_at = None, None  # until this epoch is through, the pipeline stands in its midst
        for batch in range(start.batch, len(self)):
            ready = self._to_batch(*pipeline.run(self._stream_of_device()))
            if self._running is running:
                self._delivered = Position(start.epoch, batch + 1)
            yield ready
        if self._running is running:
            self._delivered = self._next
            self._pipeline, self._pipeline_at = pipeline, self._next

    def resized(self, image_size: int) -> Loader:
        """The same batches at another size, standing where this loader stands."""
        stream, shape = replace(self._stream, image_size=image_size), replace(self._shape, image_size=image_size)
        other = Loader(self._samples, stream, shape)
        other.load_state_dict({**self.state_dict(), "image_size": image_size})
        return other

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self._stream.image_size

    def state_dict(self) -> dict[str, Any]:
        """The position behind the last batch, and what identifies the batches: plain numbers, strings and lists."""
        return {**self.position._asdict(), **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on behind the batches that `state` says were delivered: `epoch()` gives the rest of that epoch.

        Raises HemafastError, and changes nothing, if the state is of other batches than this loader's.
        """
        for name, ours in self._identity().items():
            if name not in state or state[name] != ours:
                raise HemafastError(
                    f"The saved position is one of {name} = {state.get(name)!r}, and this loader has {ours!r}.",
                    "Go on with the settings and the data the run began with.",
                )
        epoch, batch = state.get("epoch"), state.get("batch")
        if not (isinstance(epoch, int) and isinstance(batch, int) and epoch >= 0 and 0 <= batch < max(len(self), 1)):
            raise HemafastError(f"The saved position is epoch {epoch!r}, batch {batch!r}.", "Start the run anew.")
        self._delivered = self._next = Position(epoch, batch)
        self._running = None

    def _identity(self) -> dict[str, Any]:
        """All that decides what is in the batches of all processes, by names that the user knows."""
        stream, samples = self._stream, self._samples
        return {
            "split": samples.split,
            "data_fingerprint": samples.fingerprint,
            "images": hashlib.sha256(samples.packed.rows.tobytes()).hexdigest(),  # of the data set, if not all
            "pixels": "decoded" if self._shape.encoded else "packed",  # a view of a file is not scaled twice
            "batch_size": stream.batch_size,
            "world_size": stream.process.world_size,
            "policy": stream.policy.to_plain(),
            "sampler": stream.balanced,
            "shuffle": stream.shuffle,
            "seed": stream.seed,
            "image_size": stream.image_size,
            "packed_size": stream.packed_size,
        }

    def _stream_of_device(self) -> Any:
        """The stream that torch works on: memory of a batch is not used again before torch is done with it."""
        if self._shape.device == "cpu":
            return None
        import torch

        return torch.cuda.current_stream()

    def _build(self, start: Position) -> Any:
        first, second = tee(self._draws(start))
        images = ((self._images(draw.rows),) for draw in first)
        return build_graph(images, map(self._feed, second), self._shape, self._stream.policy)

    def _draws(self, start: Position) -> Iterator[Draw]:
        yield from self._stream.epoch(start.epoch, start.batch)
        for epoch in count(start.epoch + 1):
            yield from self._stream.epoch(epoch)

    def _feed(self, draw: Draw) -> tuple[Any, ...]:
        names = self._shape.inputs(self._stream.policy)
        views = self._placed(draw.rows, draw.views, cut="window" not in names)
        return self._samples.labels[draw.rows], draw.rows, *(np.ascontiguousarray(views[name]) for name in names)

    def _placed(self, rows: np.ndarray[Any, np.dtype[np.int64]], views: Views, *, cut: bool) -> dict[str, Any]:
        """The arrays of `views`, with windows in pixels of what the source yields.

        Of a file the packed square shows a part only, and has scaled it. Where nothing is scaled, turning cuts the
        window out, so that its corner is part of the shift.
        """
        placed = {name: getattr(views, name) for name in Views.__slots__}
        if self._shape.encoded:
            kept = self._samples.windows[rows]
            scale = (kept[:, 2:] - kept[:, :2]) / self._stream.packed_size
            placed["window"] = np.tile(kept[:, :2], 2) + views.window * np.tile(scale, 2)
        if cut:
            placed["turn"] = views.turn.copy()
            placed["turn"][:, :, 2] += views.window[:, 1::-1]  # (top, left) to (x, y)
        return placed

    def _to_batch(self, images: Any, labels: Any, rows: Any) -> Batch:
        from torch.utils.dlpack import from_dlpack

        # The outputs own their memory (DALI's dynamic executor), so the tensors stay valid for as long as they live.
        return Batch(
            images=from_dlpack(images.as_tensor()).permute(0, 3, 1, 2),
            labels=from_dlpack(labels.as_tensor()),
            rows=from_dlpack(rows.as_tensor()),
        )


def train_loader(
    samples: Samples,
    *,
    policy: Policy,
    seed: int,
    shape: GraphShape,
    sampler: str = "natural",
    process: Process = ALONE,
) -> Loader:
    """Shuffled batches of the training split under a policy; `sampler` as `config.balanced_share` reads it."""
    draws = {"policy": policy, "shuffle": True, "balanced": balanced_share(sampler), "seed": seed}
    return _loader(samples, shape, process, **draws)


def eval_loader(samples: Samples, *, shape: GraphShape, process: Process = ALONE) -> Loader:
    """Batches in shard order without any randomness; there is no way to ask for augmentation here."""
    return _loader(samples, shape, process, policy=POLICIES["none"], shuffle=False)


def open_loader(
    dataset: Dataset,
    split: str,
    *,
    policy: str | Policy | None,
    batch_size: int,
    size: int,
    device: str,
    sampler: str,
    seed: int,
    source: Source,
    threads: int | None,
    process: Process | None,
) -> Loader:
    """A loader over a split; the arguments are those of `Dataset.loader`."""
    on_gpu = _on_gpu(device)
    process = process or _process_here()
    samples = dataset.samples(split, size)
    shape = GraphShape(
        device="gpu" if on_gpu else "cpu",
        source=source,
        packed_size=samples.packed_size,
        image_size=size,
        batch_size=batch_size,
        threads=threads or default_threads(process.world_size),
    )
    if split == VAL:
        if policy not in (None, "none"):
            raise HemafastError(f"Validation has no augmentation, and policy = {policy!r}.", "Leave out the policy.")
        return eval_loader(samples, shape=shape, process=process)
    chosen = policy if isinstance(policy, Policy) else named_policy(policy or "basic")
    return train_loader(samples, policy=chosen, seed=seed, shape=shape, sampler=sampler, process=process)


def _on_gpu(device: str) -> bool:
    import torch

    present = torch.cuda.is_available()
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not present):
        raise HemafastError(f"device = {device!r} cannot be used here.", "Choose cpu or auto.")
    return present and device != "cpu"


def _process_here() -> Process:
    """The part of this process, if torch.distributed is initialised."""
    from torch import distributed

    if distributed.is_available() and distributed.is_initialized():
        return Process(distributed.get_rank(), distributed.get_world_size())
    return ALONE


def _loader(samples: Samples, shape: GraphShape, process: Process, **draws: Any) -> Loader:
    stream = BatchStream(
        labels=samples.labels,
        batch_size=shape.batch_size,
        packed_size=shape.packed_size,
        image_size=shape.image_size,
        process=process,
        **draws,
    )
    return Loader(samples, stream, shape)
