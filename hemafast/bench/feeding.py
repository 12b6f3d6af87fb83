"""Stations from the disk to the step: reading, decoding, augmenting, handing over, copying to the device."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np

from hemafast.bench.settings import Bench, wait_for
from hemafast.bench.worker import Done, Station
from hemafast.data.augment import POLICIES
from hemafast.data.loader import Loader

_BATCHES = 4  # that lie ready where a station does not make its own


def read(bench: Bench) -> Station:
    """The encoded files from storage: what the kernel keeps of each in memory is given up first."""
    threads = bench.machine().loader_threads
    batches = _paths(bench)
    with ThreadPoolExecutor(threads) as pool:
        for paths in cycle(batches):
            list(pool.map(_read_afresh, paths))
            yield Done(len(paths))


def decode(bench: Bench) -> Station:
    """Encoded images that lie in memory to pixels, by DALI: the ceiling of whatever decodes each epoch."""
    from nvidia.dali import Pipeline, fn

    from hemafast.preparation.pixels import decode_image

    machine = bench.machine()
    encoded = [
        [np.frombuffer(Path(path).read_bytes(), np.uint8) for path in paths] for paths in _paths(bench)[:_BATCHES]
    ]
    with Pipeline(bench.loader_batch_size, machine.loader_threads, device_id=_device_id(bench)) as pipeline:
        images = fn.external_source(source=cycle([(batch,) for batch in encoded]), num_outputs=1, no_copy=True)[0]
        pipeline.set_outputs(decode_image(images, machine.loader_device))
    while True:
        (pixels,) = pipeline.run()
        wait_for(machine.device)
        yield Done(len(pixels))


def augment(policy: str, bench: Bench) -> Station:
    """Our loader from packed squares to views under a policy."""
    return _drained(bench.loader("packed", bench.loader_batch_size, POLICIES[policy]))


def files_loader(bench: Bench) -> Station:
    """Our loader from encoded files to views, policy basic."""
    return _drained(bench.loader("files", bench.loader_batch_size, POLICIES["basic"]))


def hand_over(bench: Bench) -> Station:
    """Views that need no work through DALI to torch: what feeding a pipeline and taking from it costs by itself."""
    from nvidia.dali import Pipeline, fn
    from torch.utils.dlpack import from_dlpack

    machine = bench.machine()
    on_gpu = machine.loader_device == "gpu"
    shape = (bench.loader_batch_size, bench.image_size, bench.image_size, 3)
    views = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    executor: dict[str, Any] = {"prefetch_queue_depth": 2, "exec_dynamic": True}
    with Pipeline(len(views), machine.loader_threads, device_id=_device_id(bench), **executor) as pipeline:
        images = fn.external_source(source=cycle([(list(views),)]), num_outputs=1, no_copy=not on_gpu)[0]
        pipeline.set_outputs(images.gpu() if on_gpu else images)
    while True:
        (output,) = pipeline.run()
        handed = from_dlpack(output.as_tensor()).permute(0, 3, 1, 2)
        wait_for(machine.device)
        yield Done(len(handed))


def copy_to_device(bench: Bench) -> Station:
    """Views in page-locked memory to the GPU."""
    import torch

    shape = (bench.loader_batch_size, bench.image_size, bench.image_size, 3)
    views = torch.zeros(shape, dtype=torch.uint8).pin_memory()
    there = torch.empty(shape, dtype=torch.uint8, device="cuda")
    while True:
        there.copy_(views, non_blocking=True)
        wait_for("cuda")
        yield Done(len(views))


def _paths(bench: Bench) -> list[list[str]]:
    """The files of the training split, in whole batches; in one short batch if there are not enough."""
    paths, size = list(map(str, bench.samples.paths)), bench.loader_batch_size
    return [paths[start : start + size] for start in range(0, max(len(paths) - size, 0) + 1, size)]


def _read_afresh(path: str) -> int:
    file = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        return len(os.read(file, os.fstat(file).st_size))
    finally:
        os.close(file)


def _drained(loader: Loader) -> Station:
    for epoch in count():
        for batch in loader.epoch(epoch):
            wait_for(batch.images.device.type)
            yield Done(len(batch.labels))


def _device_id(bench: Bench) -> int | None:
    import torch

    return torch.cuda.current_device() if bench.machine().device == "cuda" else None
