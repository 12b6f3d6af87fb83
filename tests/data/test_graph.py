"""The graph for the GPU: every operator of it exists there, even where no GPU is.

Building a pipeline for a GPU needs one; defining its nodes does not, and the definition is what is walked here.
"""

import pytest
from nvidia.dali import Pipeline, fn
from nvidia.dali.ops import _registry

from hemafast.data.graph import GraphShape, define_graph

KNOWN = {"cpu": _registry.cpu_ops, "gpu": _registry.gpu_ops, "mixed": _registry.mixed_ops}


def _define(device: str, packed: bool, image_size: int):
    """The last node of the graph and, by name, the operators above it as (operator, where it runs)."""
    shape = GraphShape(device, packed, 64, image_size, 4, 1)
    with Pipeline(4, 1, 0 if device == "gpu" else None):
        last = define_graph(*(fn.external_source(name=name) for name in ("source", "kept", "corner", "matrix")), shape)
    operators, waiting = {}, [last]
    while waiting:
        node = waiting.pop()
        operator = node.source._op
        operators[node.source.name] = (operator.schema.Name(), operator.device)
        waiting.extend(node.source.inputs)
    return last, operators


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "files"])
@pytest.mark.parametrize("image_size", [56, 40])
@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_every_operator_of_the_graph_exists_for_its_device(device, packed, image_size):
    last, operators = _define(device, packed, image_size)
    assert last.device == device
    assert {"source", "matrix"} <= operators.keys()
    for name, where in operators.values():
        # Arithmetic on the few numbers of a corner is an operator without a name of its own.
        assert name.lstrip("_") == "ArithmeticGenericOp" or name in KNOWN[where]()


def test_pixels_are_worked_on_where_the_graph_runs():
    for packed in (True, False):
        where = dict(_define("gpu", packed, 40)[1].values())
        assert (where["WarpAffine"], where["Resize"]) == ("gpu", "gpu")
    assert where["decoders__Image"] == "mixed"


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_window_of_the_right_size_is_not_scaled(device):
    assert "Resize" not in {name for name, _ in _define(device, True, 56)[1].values()}
    assert "Resize" in {name for name, _ in _define(device, True, 57)[1].values()}
