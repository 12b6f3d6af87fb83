"""The loader on a GPU gives the batches of the loader on the CPU."""

import numpy as np
import pytest
import torch

from hemafast.data.augment import POLICIES
from hemafast.data.graph import GraphShape
from hemafast.data.loader import eval_loader, train_loader

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def shape_on(device: str, source: str = "packed", image_size: int = 56) -> GraphShape:
    return GraphShape(device, source, packed_size=64, image_size=image_size, batch_size=8, threads=2)


def loader_of(samples, shape: GraphShape, policy: str = "basic"):
    return train_loader(samples, policy=POLICIES[policy], seed=3, shape=shape)


def batches_of(samples, shape: GraphShape, policy: str = "basic", epoch: int = 1):
    """Images (n, size, size, 3), labels and rows of one epoch."""
    batches = list(loader_of(samples, shape, policy).epoch(epoch))
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).cpu().numpy()
    labels, rows = (torch.cat([getattr(batch, name) for batch in batches]).cpu().numpy() for name in ("labels", "rows"))
    return images, labels, rows


@pytest.mark.parametrize("source", ["packed", "resident"])
@pytest.mark.parametrize("policy", ["basic", "none"])
def test_whole_pixels_are_the_same_on_both_devices(train_samples, policy, source):
    cpu = batches_of(train_samples, shape_on("cpu"), policy)
    gpu = batches_of(train_samples, shape_on("gpu", source), policy)
    for on_cpu, on_gpu in zip(cpu, gpu, strict=True):
        assert np.array_equal(on_cpu, on_gpu)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("image_size", [32, 80])
def test_scaled_pixels_differ_by_rounding_alone(train_samples, image_size, policy):
    (cpu, *_), (gpu, *_) = (
        batches_of(train_samples, shape_on(device, image_size=image_size), policy) for device in ("cpu", "gpu")
    )
    difference = np.abs(cpu.astype(int) - gpu)
    # Where turning comes to lie between two pixels, and where a colour comes to lie at a threshold, rounding decides.
    assert np.percentile(difference, 99) <= {"strong": 12, "robust": 5}.get(policy, 2)
    assert difference.mean() < 1


def test_colours_differ_by_rounding_alone(train_samples):
    cpu, gpu = (batches_of(train_samples, shape_on(device), "robust")[0] for device in ("cpu", "gpu"))
    assert np.abs(cpu.astype(int) - gpu).max() <= 2


def test_resident_squares_are_those_of_the_memory_map_over_many_epochs(train_samples):
    """The gather of one batch must be done before DALI reads it, and not be written over while it does."""
    mapped, resident = (loader_of(train_samples, shape_on("gpu", source)) for source in ("packed", "resident"))
    for epoch in range(20):
        for one, other in zip(mapped.epoch(epoch), resident.epoch(epoch), strict=True):
            assert torch.equal(one.images, other.images)
            assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("source", ["files", "webdataset"])
def test_files_differ_by_the_decoder_alone(tarred_samples, source):
    (cpu, *orders), (gpu, *gpu_orders) = (
        batches_of(tarred_samples, shape_on(device, source)) for device in ("cpu", "gpu")
    )
    assert all(np.array_equal(one, other) for one, other in zip(orders, gpu_orders, strict=True))
    difference = np.abs(cpu.astype(int) - gpu)
    assert difference.mean() < 2  # nvJPEG is not libjpeg-turbo
    assert np.percentile(difference, 99) <= 12


@pytest.mark.parametrize("source", ["packed", "resident", "files"])
def test_batches_lie_on_the_gpu_in_channels_last(train_samples, source):
    for batch in loader_of(train_samples, shape_on("gpu", source)).epoch(0):
        assert batch.images.is_cuda
        assert batch.images.dtype == torch.uint8
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert batch.labels.is_cuda
        assert batch.labels.dtype == torch.int64
        assert not batch.rows.is_cuda


def test_batches_stay_valid_while_later_ones_are_read(train_samples):
    kept = [batch.images for batch in loader_of(train_samples, shape_on("gpu")).epoch(0)]
    copies = [batch.images.clone() for batch in loader_of(train_samples, shape_on("gpu")).epoch(0)]
    assert all(torch.equal(one, other) for one, other in zip(kept, copies, strict=True))


def test_validation_on_the_gpu_is_the_centre_window_in_shard_order(val_samples):
    batches = list(eval_loader(val_samples, shape=shape_on("gpu")).epoch())
    images = torch.cat([batch.images for batch in batches]).permute(0, 2, 3, 1).cpu().numpy()
    assert np.array_equal(images, np.asarray(val_samples.packed)[:, 4:60, 4:60])
    assert torch.cat([batch.rows for batch in batches]).tolist() == list(range(len(val_samples)))


def test_a_position_of_the_cpu_is_one_of_the_gpu(train_samples):
    cpu, gpu = (loader_of(train_samples, shape_on(device)) for device in ("cpu", "gpu"))
    running = cpu.epoch()
    next(running), next(running)
    gpu.load_state_dict(cpu.state_dict())
    for one, other in zip(running, gpu.epoch(), strict=True):
        assert torch.equal(one.images, other.images.cpu())
        assert torch.equal(one.rows, other.rows)


@pytest.mark.parametrize("source", ["packed", "resident", "files"])
def test_a_cuda_graph_can_be_captured_while_batches_are_read_and_let_go(train_samples, source):
    """DALI's own memory must not be freed late by another thread, which may synchronise the device."""
    loader, total = loader_of(train_samples, shape_on("gpu", source)), torch.zeros((), device="cuda", dtype=torch.int64)
    expected = sum(batch.images.sum(dtype=torch.int64).item() for batch in loader.epoch(0))
    earlier = []
    for batch in loader.epoch(0):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # DALI's threads allocate meanwhile
            earlier.clear()
            total += batch.images.sum(dtype=torch.int64)
        graph.replay()
        earlier.append(batch)
    assert total.item() == expected


def test_no_batch_is_waited_for_on_the_host(train_samples):
    """Reading a batch enqueues work, and never waits for what torch still has to do."""
    loader = loader_of(train_samples, shape_on("gpu"))
    batches = loader.epoch(0)
    next(batches)
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)  # about a second
    batch = next(batches)
    assert not torch.cuda.current_stream().query()
    assert batch.images.shape == (8, 3, 56, 56)


def test_squares_are_copied_to_the_gpu_once_for_all_sizes(train_samples):
    loader = loader_of(train_samples, shape_on("gpu", "resident"))
    next(loader.epoch())
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for size in (48, 64):
        loader = loader.resized(size)
    assert torch.cuda.memory_allocated() - before < 2**20
