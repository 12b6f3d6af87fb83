"""int8 exports: made of training images, held to the model's score, and run by the faster engine."""

import json
import logging
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from exported import noise, write_run, write_run_on

from hemafast.deploy import engines, quantise
from hemafast.deploy.engines import available, fastest
from hemafast.deploy.export import export_run
from hemafast.deploy.model import load_models
from hemafast.engine.load import Load
from hemafast.engine.machine import Choice
from hemafast.errors import HemafastError

SMALL = SimpleNamespace(image_size=32)
ENGINES = [
    "onnxruntime",
    pytest.param("openvino", marks=pytest.mark.skipif(not available("openvino"), reason="openvino is not installed")),
]


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """A run with an int8 export, of which any score is accepted; read it, never change it."""
    folder = write_run_on(dataset, tmp_path_factory.mktemp("int8") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantise, "MOST_LOST", 1.0)
        export_run(folder, format="onnx-int8")
    return folder


def opened(run, engine="auto"):
    (model,) = load_models([run], "cpu", "auto", engine)
    return model


def said(run):
    graph = onnx.load(run / "export" / "model.int8.onnx")
    return graph, json.loads({entry.key: entry.value for entry in graph.metadata_props}["int8"])


def test_the_graph_is_int8_and_says_what_it_lost_on_how_many_images(run, dataset):
    graph, measured = said(run)
    assert any(node.op_type == "DequantizeLinear" for node in graph.graph.node)
    assert measured["images"] == len(dataset.split("val"))
    assert measured["lost"]["onnxruntime"] <= 1
    assert measured["seven_bits"] is engines.saturates()
    assert (run / "export" / "MODEL_CARD.md").is_file()


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_answers_nearly_as_torch_does(run, monkeypatch, engine):
    monkeypatch.setattr(engines, "MOST_LOST", 1.0)
    quick, plain, images = opened(run, engine), opened(run, "torch"), noise(6)
    assert (quick.engine, plain.engine) == (engine, "torch")
    theirs, ours = quick.logits(images), plain.logits(images)
    assert 0 < (theirs - ours).abs().max() < 0.2 * ours.abs().max()
    assert quick.quick(images)[1].shape == plain.features(images).shape


def test_an_export_that_loses_too_much_is_refused_and_nothing_is_written(dataset, tmp_path, monkeypatch):
    folder = write_run_on(dataset, tmp_path / "run")
    monkeypatch.setattr(quantise, "MOST_LOST", -2.0)
    monkeypatch.setattr(quantise, "_SPARED", (2,))
    with pytest.raises(HemafastError, match=r"loses .* of macro-F1 .* is allowed"):
        export_run(folder, format="onnx-int8")
    assert not (folder / "export").exists()


def test_without_its_data_set_a_run_has_no_int8_export(tmp_path):
    with pytest.raises(HemafastError, match="with images of its data set"):
        export_run(write_run(tmp_path / "run"), format="onnx-int8")


@pytest.mark.parametrize(("costs", "winner"), [((4.0, 1.0), "b"), ((1.0, 4.0), "a")])
def test_auto_takes_the_faster_by_the_clock_and_says_the_rates(costs, winner):
    now = [0.0]
    spend = [lambda _, cost=cost: now.__setitem__(0, now[0] + cost) for cost in costs]
    choice, spread = fastest(dict(zip("ab", spend, strict=True)), SMALL, lambda: now[0])
    assert spread == pytest.approx(0.0)
    assert choice.value == winner
    assert "64" in choice.reason and "16" in choice.reason


def test_the_rounds_of_a_trial_have_a_spread():
    now, costs = [0.0], iter([9.0, 1.0, 2.0, 2.0, 2.0, 3.0])
    choice, spread = fastest({"a": lambda _: now.__setitem__(0, now[0] + next(costs))}, SMALL, lambda: now[0])
    assert spread == pytest.approx(1.0)
    assert "rounds differ by 100% at most" in choice.reason


@pytest.mark.parametrize(("cost", "rounds"), [(9.0, 2), (30.0, 1)])
def test_a_trial_of_slow_networks_says_its_time_and_ends_after_it(caplog, cost, rounds):
    now, ran = [0.0], []
    slow = {name: lambda _, name=name: (ran.append(name), now.__setitem__(0, now[0] + cost)) for name in "ab"}
    with caplog.at_level(logging.INFO, "hemafast"):
        fastest(slow, SMALL, lambda: now[0])
    assert caplog.messages == ["trying a and b, for at most 20 s"]
    assert ran == ["a", "b"] * rounds  # the first one warms up, unless it takes all the time


def test_an_engine_that_cannot_open_the_graph_is_not_tried(run, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "MOST_LOST", 1.0)

    def refuse(content):
        raise HemafastError("no room.", "")

    monkeypatch.setitem(engines.OPENERS, "onnxruntime", refuse)
    assert opened(run).engine == "torch"
    assert "onnxruntime is not tried: no room." in caplog.text


def test_a_graph_is_tried_once_and_opened_once_by_each_engine(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "MOST_LOST", 1.0)
    monkeypatch.setattr(engines, "fastest", lambda runs, card: (Choice("engine", "onnxruntime", "made up"), 0.0))
    tried, made, open_graph = [], [], engines.open_onnxruntime
    monkeypatch.setattr(engines.graph_trial, "why_not", lambda file, engine: tried.append(engine) or "")
    monkeypatch.setitem(engines.OPENERS, "onnxruntime", lambda content: made.append(content) or open_graph(content))
    assert opened(run).engine == "onnxruntime"
    assert tried.count("onnxruntime") == len(made) == 1


@pytest.mark.parametrize(
    ("has", "seven_bits", "cut_off"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx_vnni": False}, False, True),
        ({"architecture": "x86_64", "avx512_f": True, "avx_vnni": False}, True, False),
        ({"architecture": "x86_64", "avx_vnni": True}, False, False),
        ({"architecture": "x86_64", "avx512_vnni": True}, False, False),
        ({"architecture": "aarch64"}, False, False),
    ],
)
def test_a_graph_is_not_used_where_its_sums_may_overflow(run, monkeypatch, caplog, has, seven_bits, cut_off):
    monkeypatch.setattr(engines, "MOST_LOST", 1.0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    monkeypatch.setattr(engines, "_remembered", lambda *_: Choice("engine", "onnxruntime", "made up"))
    measured = engines._measured
    monkeypatch.setattr(engines, "_measured", lambda *given: measured(*given) | {"seven_bits": seven_bits})
    assert opened(run).engine == ("torch" if cut_off else "onnxruntime")
    assert ("its sums may overflow" in caplog.text) is cut_off


def test_the_choice_is_tried_once_a_machine(run, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr("hemafast.engine.load.Load.now", Load)  # a quiet machine
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(engines, "MOST_LOST", 1.0)
    tried = []

    def first(runs, card):
        tried.append(sorted(runs))
        return Choice("engine", "onnxruntime", "made up"), 0.0

    monkeypatch.setattr(engines, "fastest", first)
    with caplog.at_level(logging.INFO, "hemafast"):
        assert [opened(run).engine for _ in range(2)] == ["onnxruntime"] * 2
    assert len(tried) == 1
    assert {"torch", "onnxruntime"} <= {*tried[0]}
    assert "engine onnxruntime: made up (found before" in caplog.text


def test_auto_is_torch_without_an_export_and_where_the_score_was_lost(run, tmp_path, monkeypatch, caplog):
    assert opened(write_run(tmp_path / "plain")).engine == "torch"
    monkeypatch.setattr(engines, "MOST_LOST", -2.0)
    with caplog.at_level(logging.INFO, "hemafast"):
        assert opened(run).engine == "torch"
    with pytest.raises(HemafastError, match="was not measured in onnxruntime, or lost more"):
        opened(run, "onnxruntime")


def test_a_graph_of_other_weights_is_not_used(run, tmp_path, caplog):
    other = write_run(tmp_path / "other")
    (other / "export").mkdir()
    (other / "export" / "model.int8.onnx").write_bytes((run / "export" / "model.int8.onnx").read_bytes())
    assert opened(other).engine == "torch"
    assert "made of other weights" in caplog.text
    with pytest.raises(HemafastError, match="made of other weights"):
        opened(other, "onnxruntime")


def test_a_damaged_graph_is_refused_by_name(tmp_path):
    other = write_run(tmp_path / "other")
    (other / "export").mkdir()
    (other / "export" / "model.int8.onnx").write_bytes(b"\x08\x09 no graph")
    with pytest.raises(HemafastError, match=r"model\.int8\.onnx cannot be loaded"):
        opened(other, "onnxruntime")
    assert opened(other).engine == "torch"


def test_a_missing_engine_is_named_with_its_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(HemafastError, match=r"hemafast\[openvino\]"):
        engines.open_openvino(b"")


def test_an_engine_that_is_asked_for_without_an_export_says_how_to_make_one(tmp_path):
    with pytest.raises(HemafastError, match="--format onnx-int8"):
        opened(write_run(tmp_path / "run"), "onnxruntime")


@pytest.fixture(scope="module")
def plain():
    """A graph of two convolutions in two turns."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3)).eval()

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            return self.net(images.float()) + self.net(images.float().flip(3))

    program = torch.onnx.export(Twice().eval(), (noise(2),), input_names=["images"], verbose=False)
    return program.model_proto.SerializeToString()


def test_more_first_convolutions_stay_as_they_are_in_every_turn(plain):
    counts = []
    for spared in (0, 1, 2):
        graph = onnx.load_from_string(quantise.quantised(plain, [noise(2).numpy()], spared, turns=2))
        made = {name for node in graph.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
        counts.append(sum(np.isin(node.input[1], [*made]) for node in graph.graph.node if node.op_type == "Conv"))
    assert counts == [4, 2, 0]


@pytest.mark.parametrize(("seven_bits", "largest"), [(True, 64), (False, 127)])
def test_weights_lose_a_bit_where_sums_may_overflow(plain, seven_bits, largest):
    graph = onnx.load_from_string(quantise.quantised(plain, [noise(2).numpy()], 0, 2, seven_bits=seven_bits))
    tensors = [onnx.numpy_helper.to_array(one) for one in graph.graph.initializer if one.name.endswith("_quantized")]
    assert max(abs(one.astype(int)).max() for one in tensors if one.dtype == np.int8) == largest
