"""What DALI has made becomes tensors: in place on a CPU, copied on a GPU; and what it reads stays until it is done."""

import ctypes
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from nvidia.dali import fn
from nvidia.dali.plugin.pytorch import torch_utils
from nvidia.dali.types import DALIDataType

from hemafast.data import feed as feed_module
from hemafast.data.augment import POLICIES
from hemafast.data.batch import place
from hemafast.data.feed import DaliFeed, take
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.source import open_source
from hemafast.data.stream import READ_AHEAD, BatchStream
from hemafast.deploy.eval_graph import EvalGraph

STREAM = 4711


class OnGpu:
    """Pixels as DALI gives them on a GPU, in memory of the host. Stands for TensorListGPU and TensorGPU."""

    dtype = DALIDataType.UINT8

    def __init__(self, pixels: np.ndarray, copies: list) -> None:
        self.pixels, self.copies = pixels, copies

    def as_tensor(self):
        return self

    def shape(self):
        return list(self.pixels.shape)

    def copy_to_external(self, ptr, cuda_stream, non_blocking):
        self.copies.append((cuda_stream.value, non_blocking))
        ctypes.memmove(ptr, self.pixels.ctypes.data, self.pixels.nbytes)


@pytest.fixture
def as_if_on_gpu(monkeypatch):
    """torch allocates on the host what it is asked to allocate on a GPU, and has a stream."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, device: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=STREAM))
    monkeypatch.setattr(torch_utils, "TensorGPU", OnGpu)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)


def test_on_a_gpu_an_output_is_copied_on_the_stream_of_torch_and_let_go(as_if_on_gpu, pixels):
    copies = []
    output = OnGpu(pixels, copies)
    alive = weakref.ref(output)
    taken = take(output, "gpu")
    del output
    assert copies == [(STREAM, True)]  # and nobody waits
    assert alive() is None  # DALI has its memory back, whatever becomes of the tensor
    assert taken.dtype == torch.uint8
    assert taken.data_ptr() != pixels.ctypes.data
    np.testing.assert_array_equal(taken.numpy(), pixels)


def placed(samples, shape: GraphShape, policy: str = "basic"):
    stream = BatchStream(
        labels=samples.labels,
        batch_size=8,
        packed_size=64,
        image_size=56,
        policy=POLICIES[policy],
        shuffle=True,
    )
    return place(stream.onwards(0), samples, shape, POLICIES[policy])


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_arrays_stay_until_the_batch_made_from_them_is_delivered(as_if_on_gpu, monkeypatch, train_samples, device):
    """DALI reads them in place: nothing but the feed may count on it to keep them."""
    fed, runs = [], []

    class Forgetful:
        """Reads ahead and remembers no array, unlike DALI."""

        def __init__(self, images, views, shape, policy):
            self._read = zip(images, views, strict=True)
            self._ahead()

        def _ahead(self):
            (images,), views = next(self._read)
            fed.append([weakref.ref(array) for array in (images, *views)])

        def run(self, stream):
            self._ahead()
            runs.append(stream)
            assert all(array() is not None for batch in fed[len(runs) - 1 :] for array in batch)
            seen = np.zeros((8, 56, 56, 3), np.uint8)
            on_cpu = SimpleNamespace(as_tensor=lambda: seen)
            return (OnGpu(seen, []) if device == "gpu" else on_cpu,)

    monkeypatch.setattr(feed_module, "build_graph", Forgetful)
    shape = GraphShape(device, "packed", 64, 56, 8, 1)

    def copies(rows):
        return np.asarray(train_samples.packed)[rows]

    feed = DaliFeed(copies, placed(train_samples, shape), shape, POLICIES["basic"])
    for number in range(4):
        feed.next()
        assert all(pixels() is None for pixels, *_ in fed[:number])  # and no longer: they are large
    assert [getattr(stream, "cuda_stream", None) for stream in runs] == [STREAM if device == "gpu" else None] * 4


def test_a_feed_is_gone_with_its_last_reference(train_samples):
    """Its threads and its memory must not wait for the garbage collector."""
    shape = GraphShape("cpu", "packed", 64, 56, 8, 1)
    feed = DaliFeed(open_source(train_samples, shape), placed(train_samples, shape), shape, POLICIES["basic"])
    feed.next()
    gc.collect()
    gc.disable()
    try:
        pipeline = weakref.ref(feed._pipeline)
        del feed
        assert pipeline() is None
    finally:
        gc.enable()


def test_so_is_what_a_loader_kept_of_the_epoch_before(train_samples):
    shape = GraphShape("cpu", "packed", 64, 56, 8, 1)
    loader = train_loader(train_samples, policy=POLICIES["basic"], seed=0, shape=shape)
    list(loader.epoch())
    gc.collect()
    gc.disable()
    try:
        pipeline = weakref.ref(loader._feed._pipeline)
        del loader
        assert pipeline() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("source", ["packed", "files", "webdataset", "resident"])
@pytest.mark.parametrize("policy", ["seed", "basic", "robust"])
def test_what_a_feed_is_given_lies_in_memory_as_it_is_read(tarred_samples, source, policy):
    shape = GraphShape("cpu", source, 64, 56, 8, 1)
    batch = next(placed(tarred_samples, shape, policy))
    assert tuple(batch.views) == shape.inputs(POLICIES[policy])
    assert all(array.flags.c_contiguous and len(array) == 8 for array in batch.views.values())
    np.testing.assert_array_equal(batch.labels, tarred_samples.labels[batch.rows])


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_model_that_classifies_reads_squares_in_place_too(monkeypatch, device):
    arguments, make = {}, fn.external_source

    def noting(**given):
        arguments[given["name"]] = given
        return make(**given)

    monkeypatch.setattr(fn, "external_source", noting)
    card = SimpleNamespace(view=SimpleNamespace(packed_size=64), image_size=56)
    EvalGraph(card, SimpleNamespace(loader_device=device, loader_threads=1), batch_size=4)
    assert arguments.keys() == {"squares", "turn"}
    assert all(given["no_copy"] for given in arguments.values())


def test_more_is_read_ahead_than_one_batch():
    assert READ_AHEAD > 1  # while one is delivered, the next is made
