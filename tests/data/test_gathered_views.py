"""Views gathered by torch: those of the graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hemafast.data import loader
from hemafast.data.augment import POLICIES, Policy, draw_views
from hemafast.data.batch import place
from hemafast.data.feed import GatherFeed, compiled_gather
from hemafast.data.gather import gather
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.source import Resident, copy_squares
from hemafast.data.stream import BatchStream

GATHERED = {name: policy for name, policy in POLICIES.items() if not policy.randaugment_ops}
ASKED = {
    **GATHERED,
    "everything": replace(POLICIES["robust"], zoom=0.2, rotation=20, stain=0.1, standardize=True, erase=0.5),
}


def both(samples, policy: Policy, image_size: int, epoch: int = 1):
    """The views of an epoch by the graph and by torch, (n, size, size, 3), as integers."""
    shape = GraphShape("cpu", "resident", 64, image_size, 8, 2)
    theirs = list(train_loader(samples, policy=policy, seed=3, shape=shape).epoch(epoch))
    feed = gathering(samples, policy, shape, epoch)
    ours = [feed.next() for _ in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(our.labels, their.labels)
        assert torch.equal(our.rows, their.rows)
    batches = (torch.cat([batch.images for batch in side]) for side in (theirs, ours))
    return (images.permute(0, 2, 3, 1).numpy().astype(int) for images in batches)


def gathering(samples, policy: Policy, shape: GraphShape, epoch: int) -> GatherFeed:
    """What a loader on a GPU makes batches with, on the CPU."""
    drawn = {"policy": policy, "packed_size": 64, "image_size": shape.image_size, "seed": 3}
    stream = BatchStream(labels=samples.labels, batch_size=8, shuffle=True, **drawn)
    return GatherFeed(copy_squares(samples, "cpu"), place(stream.onwards(epoch), samples, shape, policy), shape, policy)


@pytest.mark.parametrize("policy", ["none", "basic"])
def test_whole_pixels_are_those_of_the_graph(train_samples, policy):
    theirs, ours = both(train_samples, POLICIES[policy], 56)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("policy", [*GATHERED, "everything"])
@pytest.mark.parametrize("image_size", [40, 56, 80])
def test_views_are_those_of_the_graph_but_for_rounding(train_samples, policy, image_size):
    """A value halfway between two levels becomes one or the other, and contrast stretches their difference."""
    theirs, ours = both(train_samples, ASKED[policy], image_size)
    difference = np.abs(ours - theirs)
    assert difference.max() <= 5
    assert difference.mean() < 0.01


def test_the_comparison_can_tell_another_epoch(train_samples):
    theirs, ours = both(train_samples, POLICIES["basic"], 56)
    assert np.abs(ours[::-1] - theirs).mean() > 1


class FromTheHost(TorchDispatchMode):
    """Under it, a list of operations that read from the host's memory, or let the host read."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, torch.Tensor)]
        if func.overloadpacket.__name__ == "_local_scalar_dense" or any(one.device.type == "cpu" for one in given):
            self.found.append(str(func))
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("policy", [*GATHERED, "everything"])
@pytest.mark.parametrize("image_size", [40, 56])
def test_on_a_gpu_nothing_passes_between_host_and_device(policy, image_size):
    """A GPU that is not there: tensors without values that claim to lie on one. A CUDA graph captures no such copy."""
    generator, shape = np.random.default_rng(0), GraphShape("gpu", "resident", 64, image_size, 8, 2)
    drawn, mode = draw_views(ASKED[policy], 64, image_size, 8, generator), FromTheHost()
    with FakeTensorMode():
        squares = torch.empty((20, 64, 64, 3), dtype=torch.uint8, device="cuda")
        rows = torch.empty(8, dtype=torch.int64, device="cuda")
        views = {name: torch.empty(getattr(drawn, name).shape, device="cuda") for name in shape.inputs(ASKED[policy])}
        with mode:
            seen = gather(squares, rows, views, ASKED[policy], image_size)
    assert mode.found == []
    assert (seen.shape, seen.dtype, seen.device.type) == ((8, 3, image_size, image_size), torch.uint8, "cuda")
    assert seen.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("policy", [*GATHERED, "everything"])
def test_all_of_it_is_one_graph_for_the_compiler(policy):
    """Without its backend, which takes a minute: what it traces is whole, and computes the same."""
    drawn = draw_views(ASKED[policy], 64, 40, 8, np.random.default_rng(0))
    names = GraphShape("gpu", "resident", 64, 40, 8, 2).inputs(ASKED[policy])
    views = {name: torch.from_numpy(getattr(drawn, name)) for name in names}
    squares = torch.randint(0, 256, (20, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    compiled = compiled_gather(ASKED[policy], 40, "aot_eager")
    rows = torch.arange(8)
    assert torch.equal(compiled(squares, rows, views), gather(squares, rows, views, ASKED[policy], 40))


def test_only_a_gpu_gathers_without_dali(train_samples, monkeypatch):
    """And RandAugment stays with DALI there. No GPU is here: what would be built is noted."""
    built = []
    monkeypatch.setattr(loader, "GatherFeed", lambda *given: built.append("gather"))
    monkeypatch.setattr(loader, "DaliFeed", lambda *given: built.append("dali"))
    monkeypatch.setattr(loader, "open_source", lambda samples, shape: Resident(samples, "cpu"))
    for device, policy in (("gpu", "robust"), ("gpu", "strong"), ("cpu", "robust")):
        shape = GraphShape(device, "resident", 64, 40, 8, 2)
        train_loader(train_samples, policy=POLICIES[policy], seed=3, shape=shape)._build(loader.Position(0, 0))
    assert built == ["gather", "dali", "dali"]
