"""The graph for the GPU: every operator of it exists there, even where no GPU is.

Building a pipeline for a GPU needs one; defining its nodes does not, and the definition is what is walked here.
"""

from dataclasses import asdict, replace
from typing import get_args

import pytest
from nvidia.dali import fn, pipeline_def
from nvidia.dali.backend import GetSchema
from nvidia.dali.ops import _registry

from hemafast.data.augment import POLICIES
from hemafast.data.graph import GraphShape, Source, build_graph, define_graph
from hemafast.data.stream import READ_AHEAD
from hemafast.preparation.pixels import Decoding

KNOWN = {"cpu": _registry.cpu_ops, "gpu": _registry.gpu_ops, "mixed": _registry.mixed_ops}


def _shape(device: str, source: str, image_size: int = 56) -> GraphShape:
    return GraphShape(device, source, 64, image_size, 4, 1)


def _define(device: str, source: str, policy: str, image_size: int = 56):
    """The last node of the graph, and the operators above it as (operator, where it runs)."""
    shape = _shape(device, source, image_size)
    last = None

    @pipeline_def(enable_conditionals=POLICIES[policy].randaugment_ops > 0)
    def graph():
        nonlocal last
        on_gpu = device == "gpu" and source == "resident"
        images = fn.external_source(name="source", device="gpu" if on_gpu else "cpu")
        views = {name: fn.external_source(name=name) for name in shape.inputs(POLICIES[policy])}
        last = define_graph(images, views, shape, POLICIES[policy])
        return last

    graph(batch_size=4, num_threads=1, device_id=0 if device == "gpu" else None)
    operators, waiting, seen = [], [last], set()
    while waiting:
        node = waiting.pop()
        if node.source.name not in seen:
            seen.add(node.source.name)
            operators.append((node.source._op.schema.Name(), node.source._op.device))
            waiting.extend(node.source.inputs)
    return last, operators


@pytest.mark.parametrize("image_size", [56, 40])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("source", get_args(Source))
def test_every_operator_of_the_graph_exists_on_a_gpu(source, policy, image_size):
    last, operators = _define("gpu", source, policy, image_size)
    assert last.device == "gpu"
    for name, where in operators:
        # Splitting and merging for conditionals and arithmetic are operators without a name of their own in `fn`.
        assert name.lstrip("_") == "ArithmeticGenericOp" or name in KNOWN[where](), (name, where)
        assert "Numba" not in name


def test_no_operator_has_been_invented_for_the_test():
    assert "WarpAffine" in KNOWN["gpu"]()
    assert "Nonsense" not in KNOWN["gpu"]()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("source", get_args(Source))
def test_on_a_gpu_no_pixel_is_worked_on_by_the_host(source, policy):
    _, operators = _define("gpu", source, policy, 40)
    colours = ("CoordTransform", "LookupTable", "experimental__Equalize", "reductions__Mean", "GaussianBlur")
    pixels = ("WarpAffine", "Resize", "Erase", *colours)
    assert {where for name, where in operators if name in pixels} == {"gpu"}
    assert all(where == "mixed" for name, where in operators if name == "decoders__Image")


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_both_devices_are_fed_the_same(device):
    for policy in POLICIES.values():
        assert _shape(device, "packed").inputs(policy) == _shape("cpu", "packed").inputs(policy)


def test_what_a_policy_does_not_do_is_not_in_the_graph():
    names = {name: [op for op, _ in _define("gpu", "packed", name)[1]] for name in POLICIES}
    assert "Resize" not in names["none"]
    assert "Resize" not in names["basic"]
    assert {"Resize", "WarpAffine"} <= set(names["seed"])
    for name in ("basic", "seed", "none"):
        assert not {"Erase", "CoordTransform", "GaussianBlur", "reductions__Mean"} & set(names[name])
    assert "CoordTransform" in names["lineage"]
    assert "Erase" in names["strong"]
    assert {"GaussianBlur", "reductions__Mean"} <= set(names["robust"])


def test_a_window_of_the_right_size_is_not_scaled():
    basic, none = POLICIES["basic"], POLICIES["none"]
    assert _shape("cpu", "packed", 56).inputs(basic) == ("turn",)
    assert _shape("cpu", "packed", 57).inputs(basic) == ("window", "turn")
    assert _shape("cpu", "packed", 57).inputs(none) == ("window",)
    assert _shape("cpu", "files", 56).inputs(none) == ("part", "window")
    assert _shape("gpu", "files", 56).inputs(none) == ("window",)


@pytest.fixture
def fed(monkeypatch):
    """Arguments of every fn.external_source."""
    arguments, make = [], fn.external_source

    def noting(**given):
        arguments.append(given)
        return make(**given)

    monkeypatch.setattr(fn, "external_source", noting)
    return arguments


@pytest.mark.parametrize("device", ["cpu", "gpu"])
@pytest.mark.parametrize("source", get_args(Source))
def test_memory_of_the_host_is_read_in_place_on_both_devices(fed, source, device):
    """A copy of each image before the transfer took most of the time of a batch on a GPU."""
    pipeline = build_graph(iter([]), iter([]), _shape(device, source), POLICIES["seed"])
    images, drawn = fed
    gathered = (device, source) == ("gpu", "resident")  # torch has put the batch together in memory of its own
    assert (images["device"], images["no_copy"]) == (("gpu", False) if gathered else ("cpu", True))
    assert drawn["no_copy"]
    assert drawn.get("device", "cpu") == "cpu"
    assert pipeline.prefetch_queue_depth == READ_AHEAD


@pytest.mark.parametrize("source", ["files", "webdataset"])
def test_how_a_gpu_shares_the_decoding_can_be_chosen(source):
    decoding = Decoding(hw_decoder_load=0.25, hybrid_huffman_threshold=10)
    for device in ("cpu", "gpu"):
        shape = replace(_shape(device, source), decoding=decoding)
        arguments = _arguments_of_the_decoder(shape)
        assert {name: arguments[name] for name in asdict(decoding) if name in arguments} == (
            asdict(decoding) if device == "gpu" else {}
        )


def test_unless_chosen_it_is_the_default_of_dali():
    schema = GetSchema("decoders__Image")
    for name, value in asdict(Decoding()).items():
        assert float(schema.GetArgumentDefaultValueString(name)) == pytest.approx(value)


def _arguments_of_the_decoder(shape: GraphShape) -> dict:
    with pytest.MonkeyPatch.context() as patch:
        arguments, decode = {}, fn.decoders.image

        def noting(encoded, **given):
            arguments.update(given)
            return decode(encoded, **given)

        patch.setattr(fn.decoders, "image", noting)
        build_graph(iter([]), iter([]), shape, POLICIES["none"])
    return arguments
