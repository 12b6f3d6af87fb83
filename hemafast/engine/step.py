"""One training step and one evaluation step, and the totals they leave on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemafast.data.loader import Batch
from hemafast.engine.machine import Machine
from hemafast.metrics import Confusion

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Forward = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Totals:
    """Loss and confusion matrix summed on the device; only `read` makes the host wait for it."""

    def __init__(self, classes: int, device: str) -> None:
        self._classes = classes
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._confusion = torch.zeros(classes * classes, dtype=torch.int64, device=device)
        self._pending: tuple[Tensor, Tensor, torch.cuda.Event] | None = None
        self.images = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a batch: its mean loss, its logits (n, classes), its labels (n,)."""
        cells = labels * self._classes + logits.argmax(dim=1)
        self._confusion.scatter_add_(0, cells, torch.ones_like(cells))
        self._loss += loss.detach().double() * len(labels)
        self.images += len(labels)

    def read(self) -> tuple[float, Confusion]:
        """Mean loss an image, and the confusion matrix (classes, classes) with true classes as rows."""
        confusion = self._confusion.cpu().numpy().reshape(self._classes, self._classes)
        return float(self._loss) / max(self.images, 1), confusion.astype(np.int64)

    def glance(self) -> tuple[float, Confusion] | None:
        """Like `read`, but never waits: on a GPU it gives the values of an earlier call, or None before they arrive."""
        if not self._loss.is_cuda:
            return self.read()
        arrived = None
        if self._pending is not None and self._pending[2].query():  # type: ignore[no-untyped-call]
            loss, confusion, _ = self._pending
            arrived = loss.item(), confusion.numpy().reshape(self._classes, self._classes)
            self._pending = None
        if self._pending is None:
            copies = [_to_pinned(part) for part in (self._loss / max(self.images, 1), self._confusion)]
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._pending = copies[0], copies[1], event
        return arrived


def _to_pinned(tensor: Tensor) -> Tensor:
    """Start a copy to page-locked host memory and return at once."""
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)


class Steps:
    """The two steps over one model; built once, they hold everything that may be compiled."""

    def __init__(self, model: nn.Module, loss: nn.Module, machine: Machine) -> None:
        self._forward = _maybe_compiled(_forward(model, loss, machine), machine)
        # Only fp16 underflows; bf16 has the range of fp32.
        self.scaler = torch.amp.GradScaler(machine.device, enabled=machine.precision == "fp16")

    def train(self, batch: Batch, optimizer: torch.optim.Optimizer, lr: float, totals: Totals) -> None:
        """Forward, backward, update at rate `lr`."""
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.zero_grad(set_to_none=True)
        loss, logits = self._forward(batch.images, batch.labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.step(optimizer)
        self.scaler.update()
        totals.add(loss, logits.detach(), batch.labels)

    @torch.inference_mode()
    def evaluate(self, batch: Batch, totals: Totals) -> Tensor:
        """Forward only. Returns probabilities, fp32 (n, classes)."""
        loss, logits = self._forward(batch.images, batch.labels)
        totals.add(loss, logits, batch.labels)
        return logits.float().softmax(dim=1)


def build_optimizer(model: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW in its fused form: one pass over the parameters instead of a dozen."""
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)


def _forward(model: nn.Module, loss: nn.Module, machine: Machine) -> Forward:
    dtype = _DTYPES.get(machine.precision)

    def forward(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(machine.device, dtype=dtype, enabled=dtype is not None):
            logits = model(images)
        return loss(logits.float(), labels), logits

    return forward


def _maybe_compiled(forward: Forward, machine: Machine) -> Forward:
    if not machine.compiled:
        return forward
    # Inductor decides the layout from the forward graph alone, and unless forced loses channels_last in the backward.
    options: dict[str, Any] = {"force_layout_optimization": True}
    compiled: Forward = torch.compile(forward, dynamic=False, options=options)
    return compiled
