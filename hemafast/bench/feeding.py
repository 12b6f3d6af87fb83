"""Stations from the disk to the step: read, decode, augment, hand over, copy to the device."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hemafast.bench.settings import Bench
from hemafast.bench.worker import Done, Station
from hemafast.data.graph import Source, current_device

if TYPE_CHECKING:
    from hemafast.data.augment import Policy

_BATCHES = 4  # encoded batches in memory


def read(bench: Bench) -> Station:
    """Read the encoded files from storage, after dropping each from the kernel's page cache."""
    with ThreadPoolExecutor(bench.machine().loader_threads) as pool:
        for paths in cycle(_paths(bench)):
            list(pool.map(_read_afresh, paths))
            yield Done(len(paths))


def decode(bench: Bench) -> Station:
    """Decode images in memory with DALI: the ceiling of every input that decodes each epoch."""
    from nvidia.dali import Pipeline, fn

    from hemafast.preparation.pixels import decode_image
    from hemafast.preparation.reader import read_image

    machine = bench.machine()
    device = current_device(machine.loader_device)
    sha256 = {path: digest.decode() for path, digest in zip(bench.samples.paths, bench.samples.sha256, strict=True)}
    files = _paths(bench)[:_BATCHES]
    encoded = [[np.frombuffer(read_image(Path(path), sha256[path]), np.uint8) for path in paths] for paths in files]
    with Pipeline(bench.loader_batch_size, machine.loader_threads, device_id=device) as pipeline:
        images = fn.external_source(source=cycle([(batch,) for batch in encoded]), num_outputs=1, no_copy=True)[0]
        pipeline.set_outputs(decode_image(images, machine.loader_device))
    while True:
        (pixels,) = pipeline.run()
        yield Done(len(pixels))


def load(source: Source | None, policy: str | Policy, bench: Bench) -> Station:
    """Our loader to views under a policy, from `source`, or from what training would read."""
    loader = bench.loader(bench.loader_batch_size, policy, source)
    return (Done(len(batch.labels)) for epoch in count() for batch in loader.epoch(epoch))


def hand_over(bench: Bench) -> Station:
    """Pass views through DALI to torch without any work: the cost of feeding a pipeline and taking from it."""
    from nvidia.dali import Pipeline, fn
    from torch.utils.dlpack import from_dlpack

    machine = bench.machine()
    device = current_device(machine.loader_device)
    shape = (bench.loader_batch_size, bench.settings.image_size, bench.settings.image_size, 3)
    views = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    executor: dict[str, Any] = {"prefetch_queue_depth": 2, "exec_dynamic": True}
    with Pipeline(len(views), machine.loader_threads, device_id=device, **executor) as pipeline:
        images = fn.external_source(source=cycle([(list(views),)]), num_outputs=1, no_copy=True)[0]
        pipeline.set_outputs(images if device is None else images.gpu())
    while True:
        (output,) = pipeline.run()
        handed = from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        yield Done(len(handed))


def copy_to_device(bench: Bench) -> Station:
    """Copy views from page-locked memory to the GPU."""
    import torch

    shape = (bench.loader_batch_size, bench.settings.image_size, bench.settings.image_size, 3)
    views = torch.zeros(shape, dtype=torch.uint8).pin_memory()
    there = torch.empty(shape, dtype=torch.uint8, device="cuda")
    while True:
        there.copy_(views, non_blocking=True)
        yield Done(len(views))


def _paths(bench: Bench) -> list[list[str]]:
    """The files of the training split in whole batches; one short batch if there are too few."""
    paths, size = list(map(str, bench.samples.paths)), bench.loader_batch_size
    return [paths[start : start + size] for start in range(0, max(len(paths) - size, 0) + 1, size)]


def _read_afresh(path: str) -> int:
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return len(os.read(file, os.fstat(file).st_size))
    finally:
        os.close(file)
