"""Stations for the ceilings of this machine: arithmetic and memory."""

from __future__ import annotations

from hemafast.bench.settings import Bench
from hemafast.bench.worker import Done, Station

_SIDES = {"cpu": 2048, "cuda": 8192}  # of the matrices: large enough to be bound by arithmetic, small enough for ms
_COPIED = {"cpu": 256 * 2**20, "cuda": 2**30}  # bytes: far beyond any cache

PRODUCT_FLOPS = {device: 2 * side**3 for device, side in _SIDES.items()}
"""Floating-point operations of one product, by device."""
COPY_BYTES = {device: 2 * size for device, size in _COPIED.items()}
"""Bytes that one copy reads and writes, by device."""


def matrix_product(bench: Bench) -> Station:
    """Products of square matrices in the precision of the step."""
    import torch

    from hemafast.bench.costs import DTYPES

    machine = bench.machine(tuned=True)
    side, dtype = _SIDES[machine.device], DTYPES[machine.precision]
    first, second, out = (torch.rand(side, side, device=machine.device).to(dtype) for _ in range(3))
    while True:
        torch.mm(first, second, out=out)
        yield Done(1)


def memory_copy(bench: Bench) -> Station:
    """Copies within the memory of the device."""
    import torch

    device = bench.machine(tuned=True).device
    source, target = (torch.full((_COPIED[device],), fill, dtype=torch.uint8, device=device) for fill in (1, 0))
    while True:
        target.copy_(source)
        yield Done(1)
