"""Views gathered by torch: those of the graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hemafast.data.augment import POLICIES, Policy, draw_views
from hemafast.data.gather import can_gather, gather
from hemafast.data.graph import GraphShape
from hemafast.data.loader import train_loader
from hemafast.data.source import copy_squares
from hemafast.data.stream import BatchStream

GATHERED = {name: policy for name, policy in POLICIES.items() if can_gather(policy)}
ASKED = {
    **GATHERED,
    "everything": replace(POLICIES["robust"], zoom=0.2, rotation=20, stain=0.1, standardize=True, erase=0.5),
}


def both(samples, policy: Policy, image_size: int, epoch: int = 1):
    """The views of an epoch by the graph and by torch, (n, size, size, 3), as integers."""
    shape = GraphShape("cpu", "packed", 64, image_size, 8, 2)
    drawn = {"policy": policy, "packed_size": 64, "image_size": image_size, "seed": 3}
    stream = BatchStream(labels=samples.labels, batch_size=8, shuffle=True, **drawn)
    squares, names = copy_squares(samples, "cpu"), shape.inputs(policy)
    theirs = [batch.images for batch in train_loader(samples, policy=policy, seed=3, shape=shape).epoch(epoch)]
    ours = []
    for draw in stream.epoch(epoch):
        views = {name: getattr(draw.views, name) for name in names}
        if "window" not in names:
            views["turn"] = views["turn"].copy()
            views["turn"][:, :, 2] += draw.views.window[:, 1::-1]
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in views.items()}
        ours.append(gather(squares, torch.from_numpy(draw.rows), tensors, policy, image_size))
        assert ours[-1].is_contiguous(memory_format=torch.channels_last)
    return (torch.cat(views).permute(0, 2, 3, 1).numpy().astype(int) for views in (theirs, ours))


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
