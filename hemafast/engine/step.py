"""The training step, the evaluation step, and the totals they leave on the device. Steps never wait for the device."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from hemafast.data.batch import Batch
from hemafast.engine.average import Average
from hemafast.engine.captured import Capture
from hemafast.engine.compiling import Compiler, Forward
from hemafast.engine.distributed import World
from hemafast.engine.machine import Machine
from hemafast.engine.optimizer import set_rate
from hemafast.engine.teacher import Teacher
from hemafast.metrics import Confusion, accuracy, macro_f1
from hemafast.model import Classifier

_LEAST_SCALE = 1.0  # of fp16: above it, an overflow only means that the scaler still looks for its scale


class Late:
    """A recent value of a device tensor on the host; asking for it never waits."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        # On a CPU the tensor's own memory; on a GPU page-locked memory that `glance` refreshes.
        self._host = tensor if not tensor.is_cuda else torch.empty_like(tensor, device="cpu", pin_memory=True)
        self._view = self._host.numpy()
        self._arriving: torch.cuda.Event | None = None

    def glance(self) -> npt.NDArray[Any] | None:
        """A copy of the value. On a GPU it dates from an earlier call, and is None if no newer one has arrived."""
        if not self._tensor.is_cuda:
            return self._view.copy()
        arrived = None
        if self._arriving is not None and self._arriving.query():  # type: ignore[no-untyped-call]
            arrived, self._arriving = self._view.copy(), None
        if self._arriving is None:
            self._host.copy_(self._tensor, non_blocking=True)
            self._arriving = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arriving.record()
        return arrived


class Totals:
    """Loss, gradient norm and confusion matrix, summed on the device. `read` and `mean_norm` wait for the device."""

    def __init__(self, classes: int, device: str) -> None:
        self._classes = classes
        # One tensor, so that one copy fetches all and one call sums all over processes. float64 counts exactly.
        self._sums = torch.zeros(3 + classes * classes, dtype=torch.float64, device=device)
        self._loss, self._norm, self._updates = self._sums[0], self._sums[1], self._sums[2]
        self._confusion = self._sums[3:]
        self._late = Late(self._sums)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, its logits (n, classes), its labels (n,)."""
        cells = labels * self._classes + logits.argmax(dim=1)
        self._confusion.scatter_add_(0, cells, torch.ones_like(cells, dtype=torch.float64))
        self._loss += loss.detach().double() * len(labels)

    def add_update(self, norm: Tensor, bad: Tensor) -> None:
        """Add the norm of the gradients of an update, unless it was `bad`."""
        self._norm += torch.where(bad, 0.0, norm.double())
        self._updates += ~bad

    def empty(self) -> Totals:
        """Sums of the same classes on the same device that start at zero."""
        return Totals(self._classes, self._sums.device.type)

    def take(self, others: Totals) -> None:
        """Add the sums of `others`, and set those to zero."""
        self._sums += others._sums
        others._sums.zero_()

    def read(self) -> tuple[float, Confusion]:
        """Mean loss per image, and the confusion matrix (classes, classes) with true classes as rows."""
        return self._split(self._sums.cpu().numpy())

    def glance(self) -> tuple[float, Confusion] | None:
        """Like `read`, but never waits: on a GPU, the values of an earlier call, or None before they arrive."""
        sums = self._late.glance()
        return None if sums is None else self._split(sums)

    def latest(self) -> dict[str, float] | None:
        """The scores of `glance` by name, to be shown while a run trains."""
        seen = self.glance()
        return None if seen is None else {"loss": seen[0], "f1_macro": macro_f1(seen[1])}

    def measured(self) -> tuple[dict[str, float], int]:
        """Scores by name, and the number of images they are of; waits for the device."""
        loss, confusion = self.read()
        scores = {"loss": loss, "accuracy": accuracy(confusion), "f1_macro": macro_f1(confusion)}
        return scores, int(confusion.sum())

    def mean_norm(self) -> float:
        """Mean gradient norm of all updates."""
        return float(self._norm / self._updates)

    def summed(self, world: World) -> Tensor:
        """The sums over all processes, for `load`; collective."""
        sums = self._sums.clone()
        world.add_up(sums)
        return sums

    def load(self, sums: Tensor) -> None:
        """Continue from these sums."""
        self._sums.copy_(sums)

    def _split(self, sums: npt.NDArray[np.float64]) -> tuple[float, Confusion]:
        confusion = sums[3:].reshape(self._classes, self._classes).astype(np.int64)
        return float(sums[0]) / max(int(confusion.sum()), 1), confusion


class ViewTotals(Totals):
    """Loss, gradient norm and number of images, without classes."""

    def __init__(self, views: int, device: str) -> None:
        super().__init__(1, device)
        self._views = views

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss; its labels (n,) say how many views it has."""
        images = len(labels) // self._views
        self._confusion += images
        self._loss += loss.detach().double() * images

    def empty(self) -> ViewTotals:
        """Sums on the same device that start at zero."""
        return ViewTotals(self._views, self._sums.device.type)

    def latest(self) -> dict[str, float] | None:
        """The loss."""
        seen = self.glance()
        return None if seen is None else {"loss": seen[0]}

    def measured(self) -> tuple[dict[str, float], int]:
        """The loss, and the number of images."""
        loss, confusion = self.read()
        return {"loss": loss}, int(confusion.sum())


class BadUpdates:
    """Counts updates with a loss or gradients that are not finite, and keeps the number of the last; on the device."""

    def __init__(self, device: str) -> None:
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)
        self._late = Late(self._counts)

    def add(self, bad: Tensor, step: Tensor | int) -> None:
        """Count update `step` if the boolean scalar `bad` is true."""
        self._counts[0] += bad
        self._counts[1].copy_(torch.where(bad, step, self._counts[1]))

    def glance(self) -> tuple[int, int] | None:
        """Recent values of the count and of the last update's number, without waiting; None if none has arrived."""
        counts = self._late.glance()
        return None if counts is None else (int(counts[0]), int(counts[1]))

    def read(self) -> tuple[int, int]:
        """The present values; waits for the device."""
        count, last = self._counts.tolist()
        return count, last

    def start_from(self, count: int) -> None:
        """Continue from `count`."""
        self._counts[0] = count


def loss_forward(model: nn.Module, loss: nn.Module, machine: Machine) -> Forward:
    """A function from uint8 images (n, 3, size, size) and targets to loss and logits, in the machine's precision."""
    dtype = machine.dtype

    def forward(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(machine.device, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        return loss(logits.float(), targets), logits

    return forward


class EvalStep:
    """Classifies a batch."""

    def __init__(self, model: nn.Module, loss: nn.Module, machine: Machine, compiler: Compiler | None = None) -> None:
        self._forward = (compiler or Compiler(enabled=False)).compile(loss_forward(model, loss, machine), "evaluation")

    @torch.inference_mode()
    def __call__(self, batch: Batch, totals: Totals) -> Tensor:
        """Probabilities, fp32 (n, classes); adds the batch to `totals`."""
        loss, logits = self._forward(batch.images, batch.labels)
        totals.add(loss, logits, batch.labels)
        return logits.float().softmax(dim=1)


class TrainStep:
    """Learns from a batch.

    With `capture`, the whole of a step is one CUDA graph (`captured.Captured`). So nothing that differs
    between two steps may be a number of Python in `_learn` or `_update`: it comes in a tensor that `__call__` fills.
    """

    def __init__(
        self,
        model: Classifier,
        loss: nn.Module,
        optimizer: torch.optim.Optimizer,
        machine: Machine,
        compiler: Compiler | None = None,
        *,
        clip_grad: float | None = None,
        ema: Average[Classifier] | None = None,
        mix: Mix | None = None,
        teacher: Teacher | None = None,
        skip_bad: bool = False,
        shared: nn.Module | None = None,
        capture: Capture | None = None,
    ) -> None:
        self._model, self._optimizer, self._clip, self._ema, self._mix = model, optimizer, clip_grad, ema, mix
        self._teacher = teacher
        self._shared = shared  # the model inside DistributedDataParallel, which averages gradients
        compiler = compiler or Compiler(enabled=False)
        self._forward = compiler.compile(loss_forward(shared or model, loss, machine), "training")
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._static_gradients = compiler.replays
        if self._static_gradients:
            self._keep_gradients()
        # fp16 underflows; bf16 has the range of fp32.
        self.scaler = torch.amp.GradScaler(machine.device, enabled=machine.precision == "fp16")
        self.bad = BadUpdates(machine.device)
        self._guard = _Guard(model) if skip_bad else None
        self._begins = True  # whether the next batch is the first of an update
        self._finite = torch.ones((), dtype=torch.bool, device=machine.device)
        self._number = torch.zeros((), dtype=torch.int64, device=machine.device)
        self._share = torch.zeros((), device=machine.device)  # of these weights in their average
        self._captured = capture(self._learn_whole, self._forget) if capture else None
        self._sums: Totals | None = None  # of the captured step: tensors that stay where they are

    def __call__(
        self, batch: Batch, lr: float, totals: Totals, *, step: int, share: float = 1.0, update: bool = True
    ) -> None:
        """Forward and backward pass of a batch; with `update`, then update number `step` at learning rate `lr`.

        `share` is the weight of the batch's mean loss in its update. An update with a loss or gradients that are not
        finite changes no weight, and `bad` counts it.
        """
        whole = self._begins and update and share == 1.0
        if update:
            set_rate(self._optimizer, lr)
            self._number.fill_(step)
            if self._ema is not None:
                self._share.fill_(self._ema.share(step))
        if self._captured is not None and whole and self._captured.takes(batch.images):
            self._sums = self._sums or totals.empty()
            self._captured(batch.images, batch.labels)
            totals.take(self._sums)
            return
        if self._guard is not None and self._begins:
            self._guard.remember()
        self._begins = update
        images, targets = (batch.images, batch.labels) if self._mix is None else self._mix(batch)
        if self._teacher is not None:
            targets = self._teacher(images, targets)
        self._learn(images, targets, batch.labels, share, totals, sync=update)
        if update:
            self._update(totals)

    def _learn_whole(self, images: Tensor, labels: Tensor) -> None:
        """The step of a batch that is an update of its own, from the present state to the next."""
        assert self._sums is not None
        if self._guard is not None:
            self._guard.remember()
        self._learn(images, labels, labels, 1.0, self._sums, sync=True)
        self._update(self._sums)

    def _learn(
        self, images: Tensor, targets: Tensor, labels: Tensor, share: float, totals: Totals, *, sync: bool
    ) -> None:
        """Forward and backward pass. Processes exchange gradients with `sync`: once per update, not per batch."""
        with nullcontext() if sync or self._shared is None else self._shared.no_sync():  # type: ignore[operator]
            loss, logits = self._forward(images, targets)
            self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        self._finite.logical_and_(loss.detach().isfinite())
        totals.add(loss.detach().nan_to_num(0, 0, 0), logits.detach(), labels)

    def _update(self, totals: Totals) -> None:
        self.scaler.unscale_(self._optimizer)
        norm = torch.nn.utils.get_total_norm(
            [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        )
        bad = self._judge(norm)
        if self._clip is not None:
            torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip, norm)
        if not self.scaler.is_enabled():
            self._optimizer.found_inf = bad.float()  # type: ignore[attr-defined] # as a scaler does
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._optimizer.zero_grad(set_to_none=not self._static_gradients)
        if self._guard is not None:
            self._guard.undo(bad)
        if self._ema is not None:
            self._ema.take(torch.where(bad, 0.0, self._share))
        self.bad.add(bad, self._number)
        totals.add_update(norm, bad | ~norm.isfinite())

    def _judge(self, norm: Tensor) -> Tensor:
        """Whether the update is bad, a boolean scalar on the device; the same in all processes."""
        finite = norm.isfinite()
        if self.scaler.is_enabled():
            finite = finite | (self.scaler._scale > _LEAST_SCALE)  # type: ignore[operator]
        bad = ~(finite & self._finite)
        self._finite.fill_(value=True)
        if self._shared is None:
            return bad
        counted = bad.int()
        torch.distributed.all_reduce(counted)
        return counted > 0

    def _keep_gradients(self) -> None:
        """Give each gradient memory of its own. Without it, the first backward pass of an update hands over its
        memory, which belongs to a CUDA graph of the compiler, and the next replay writes over the sum."""
        for parameter in self._parameters:
            parameter.grad = torch.zeros_like(parameter)

    def _forget(self) -> None:
        """Drop what a capture that failed left behind: it has computed nothing."""
        self._optimizer.zero_grad(set_to_none=True)
        fresh = torch.amp.GradScaler(self._number.device.type, enabled=self.scaler.is_enabled())
        fresh.load_state_dict(self.scaler.state_dict())
        self.scaler = fresh


class Mix:
    """Mixup and cutmix of timm, one choice per batch."""

    def __init__(self, classes: int, *, mixup: float, cutmix: float) -> None:
        from timm.data.mixup import Mixup

        self._classes = classes
        # No smoothing here, because the loss does it.
        self._mixup = Mixup(mixup_alpha=mixup, cutmix_alpha=cutmix, label_smoothing=0.0, num_classes=classes)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Mixed images, float (n, 3, height, width) from 0 to 255, and shares of the classes (n, classes)."""
        images = batch.images.float()
        even = len(images) // 2 * 2  # images are mixed in pairs; the last of an odd number stays unmixed
        # Not functional.one_hot, which waits for the device to check the labels.
        targets = images.new_zeros(len(images), self._classes).scatter_(1, batch.labels[:, None], 1.0)
        _, targets[:even] = self._mixup(images[:even], batch.labels[:even])
        return images, targets


class _Guard:
    """Undoes what a bad update changed besides the weights: the statistics of batch norm."""

    def __init__(self, model: nn.Module) -> None:
        self._tensors = [tensor for tensor in model.buffers() if tensor.is_floating_point()]
        self._good = self._flat()

    @torch.no_grad()
    def remember(self) -> None:
        self._good.copy_(self._flat())

    @torch.no_grad()
    def undo(self, bad: Tensor) -> None:
        # Chosen in one piece: a choice for each of a hundred small tensors would cost a kernel each.
        sizes = [tensor.numel() for tensor in self._tensors]
        chosen = torch.split(torch.where(bad, self._good, self._flat()), sizes)
        parts = [part.view_as(tensor) for part, tensor in zip(chosen, self._tensors, strict=True)]
        torch._foreach_copy_(self._tensors, parts)

    def _flat(self) -> Tensor:
        return torch.cat([tensor.reshape(-1) for tensor in self._tensors])


def seed_batch(seed: int, rank: int, epoch: int, batch: int) -> None:
    """Seed the generators of torch, numpy and Python for one batch of one process.

    So dropout and mixing depend on the position in the run alone, and a checkpoint needs no state of a generator.
    """
    words = np.random.SeedSequence([seed, rank, epoch, batch]).generate_state(2)
    whole = int(words[0]) << 32 | int(words[1])
    # Not torch.manual_seed, which asks every kind of device, and takes a quarter of a millisecond where CUDA is unused.
    torch.default_generator.manual_seed(whole)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.default_generators[torch.cuda.current_device()].manual_seed(whole)
    np.random.seed(words)  # noqa: NPY002 - timm draws from it
    random.seed(int(words[0]))


def update_plan(sizes: Sequence[tuple[int, int]], accumulate: int, world_size: int) -> list[tuple[float, bool]]:
    """For each batch of an epoch: the share of its mean loss in its update, and whether it completes the update.

    `sizes` are images per batch, of this process and of all. An update is the mean over all its images, even if its
    batches differ in size. DistributedDataParallel averages over processes, hence the factor `world_size`.
    """
    plan = []
    for first in range(0, len(sizes), accumulate):
        group = sizes[first : first + accumulate]
        images = sum(whole for _, whole in group)
        plan += [(mine * world_size / images, rank == len(group) - 1) for rank, (mine, _) in enumerate(group)]
    return plan
