"""The loader on a GPU gives the batches of the loader on the CPU."""

import numpy as np
import pytest
import torch

from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader, train_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def shape_on(device: str, *, packed: bool, image_size: int = 56) -> GraphShape:
    return GraphShape(device, packed=packed, packed_size=64, image_size=image_size, batch_size=8, threads=2)


def batches_of(samples, shape: GraphShape, epoch: int = 1):
    """Images (n, size, size, 3), labels and rows of one epoch under the training policy."""
    batches = list(train_loader(samples, policy="basic", seed=3, shape=shape).epoch(epoch))
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).cpu().numpy()
    labels, rows = (torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy() for name in ("labels", "rows"))
    return images, labels, rows


def test_packed_pixels_are_the_same_on_both_devices(train_samples):
    cpu, gpu = (batches_of(train_samples, shape_on(device, packed=True)) for device in ("cpu", "gpu"))
    for on_cpu, on_gpu in zip(cpu, gpu, strict=True):
        assert np.array_equal(on_cpu, on_gpu)


@pytest.mark.parametrize("image_size", [32, 80])
def test_scaled_pixels_differ_by_rounding_alone(train_samples, image_size):
    (cpu, *_), (gpu, *_) = (
        batches_of(train_samples, shape_on(device, packed=True, image_size=image_size)) for device in ("cpu", "gpu")
    )
    assert np.abs(cpu.astype(int) - gpu).max() <= 2


def test_files_differ_by_the_decoder_alone(train_samples):
    (cpu, *orders), (gpu, *gpu_orders) = (
        batches_of(train_samples, shape_on(device, packed=False)) for device in ("cpu", "gpu")
    )
    assert all(np.array_equal(one, other) for one, other in zip(orders, gpu_orders, strict=True))
    difference = np.abs(cpu.astype(int) - gpu)
    assert difference.mean() < 2  # nvJPEG is not libjpeg-turbo
    assert np.percentile(difference, 99) <= 12


def test_batches_lie_on_the_gpu_in_channels_last(train_samples):
    loader = train_loader(train_samples, policy="basic", seed=0, shape=shape_on("gpu", packed=True))
    for batch in loader.epoch(0):
        assert batch.images.is_cuda
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.is_cuda
        assert batch.labels.dtype == torch.int64
        assert not batch.rows.is_cuda


def test_batches_stay_valid_while_later_ones_are_read(train_samples):
    shape = shape_on("gpu", packed=True)
    kept = [batch.images for batch in train_loader(train_samples, policy="none", seed=0, shape=shape).epoch(0)]
    copies = [
        batch.images.clone() for batch in train_loader(train_samples, policy="none", seed=0, shape=shape).epoch(0)
    ]
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


def test_validation_on_the_gpu_is_the_centre_window_in_shard_order(val_samples):
    batches = list(eval_loader(val_samples, shape=shape_on("gpu", packed=True)).epoch())
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).cpu().numpy()
    assert np.array_equal(images, np.asarray(val_samples.packed)[:, 4:60, 4:60])
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(len(val_samples)))
