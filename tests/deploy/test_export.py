"""Exported models: what they take and answer, that they were compared with the model, and what is refused."""

import json
import os
import sys
from copy import deepcopy
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from command import hemafast
from exported import CARD, hostile_checkpoints, metadata_of, noise, random_model, write_run, write_run_on
from safetensors.torch import load_file
from torch import nn

import hemafast as package
from hemafast.deploy import formats
from hemafast.deploy.export import TOLERANCE, compare, export_run
from hemafast.deploy.formats import KINDS, Deployed, Kind, pack_onnx, pack_torch_export
from hemafast.deploy.model import open_model
from hemafast.engine.checkpoint import save_best
from hemafast.errors import HemafastError
from hemafast.model import Classifier

FORMATS = ("onnx", "torch-export", "safetensors")
LAYOUTS = ("nhwc", "nchw")
TEMPERATURE = CARD.calibration.temperature
STANDARDIZED = replace(CARD, backbone="test_efficientnet", quarter_turns=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Read it, never change it."""
    return write_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def exports(run, tmp_path_factory):
    """What was exported as each format and layout."""
    folder = tmp_path_factory.mktemp("exports")
    return {
        (kind, layout): export_run(run, folder / f"{kind}-{layout}", format=kind, layout=layout)
        for kind in FORMATS
        for layout in LAYOUTS
    }


def answers_of(images):
    """Logits and calibrated probabilities of the model itself, by plain torch."""
    with torch.inference_mode():
        logits = random_model()(images)
    return logits.numpy(), torch.softmax(logits / TEMPERATURE, dim=1).numpy()


def as_layout(images, layout):
    return images.permute(0, 2, 3, 1).contiguous() if layout == "nhwc" else images


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("batch", [1, 3, 16])
def test_an_onnx_graph_answers_batches_of_any_size_as_the_model_does(exports, layout, batch):
    session = onnxruntime.InferenceSession(exports["onnx", layout].path, providers=["CPUExecutionProvider"])
    images = noise(batch)
    found = session.run(["logits", "probabilities"], {"images": as_layout(images, layout).numpy()})
    for ours, theirs in zip(answers_of(images), found, strict=True):
        np.testing.assert_allclose(theirs, ours, atol=1e-4)


def test_an_onnx_graph_says_what_it_takes_and_what_it_is(exports):
    for layout, shape in (("nhwc", ["batch", 32, 32, 3]), ("nchw", ["batch", 3, 32, 32])):
        graph = onnx.load(exports["onnx", layout].path)
        onnx.checker.check_model(graph, full_check=True)
        (taken,) = graph.graph.input
        assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        assert [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim] == shape
        said = {entry.key: entry.value for entry in graph.metadata_props}
        assert json.loads(said["classes"]) == list(CARD.classes)
        assert json.loads(said["view"])["um_per_pixel"] == CARD.view.um_per_pixel
        assert json.loads(said["calibration"])["threshold"] == CARD.calibration.threshold
        assert (said["image_size"], float(said["temperature"]), said["layout"]) == ("32", TEMPERATURE, layout)
        assert (said["data_fingerprint"], said["hemafast_version"]) == (CARD.data_fingerprint, package.__version__)
        assert exports["onnx", layout].opset == graph.opset_import[0].version


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_torch_export_answers_as_the_model_does_and_refuses_another_size(exports, layout):
    extra = {"metadata.json": ""}
    graph = torch.export.load(exports["torch-export", layout].path, extra_files=extra).module()
    for batch in (1, 3, 16):
        images = noise(batch)
        for ours, theirs in zip(answers_of(images), graph(as_layout(images, layout)), strict=True):
            np.testing.assert_allclose(theirs.detach().numpy(), ours, atol=1e-4)
    assert json.loads(extra["metadata.json"])["layout"] == layout
    with pytest.raises(AssertionError, match="Guard failed"):
        graph(as_layout(noise(2, side=33), layout))


def test_safetensors_are_the_weights_of_plain_timm(exports):
    file = exports["safetensors", "nhwc"].path
    said = metadata_of(file)
    plain = timm.create_model(said["backbone"], num_classes=3).eval()
    plain.load_state_dict(load_file(file), strict=True)
    images = noise(5)
    mean, std = (np.array(json.loads(said[name]), np.float32).reshape(1, 3, 1, 1) for name in ("mean", "std"))
    normalised = (images.numpy() / np.float32(255) - mean) / std
    logits = plain(torch.from_numpy(normalised)).detach()
    np.testing.assert_allclose(logits.numpy(), answers_of(images)[0], atol=1e-4)
    assert json.loads(said["classes"]) == list(CARD.classes)
    assert "layout" not in said


@pytest.fixture(scope="module")
def standardizing(tmp_path_factory):
    """A run whose network standardizes its images and averages over their quarter turns."""
    folder = tmp_path_factory.mktemp("standardizing")
    model = random_model(STANDARDIZED)
    model.standardize = True
    save_best(folder / "best_model.safetensors", model, STANDARDIZED)
    return folder


@pytest.mark.parametrize("kind", ["onnx", "safetensors"])
def test_an_export_standardizes_and_turns_images_as_its_run_does(standardizing, tmp_path, kind):
    exported = export_run(standardizing, tmp_path, format=kind)
    ours, theirs = (open_model(path, device="cpu") for path in (standardizing, exported.path))
    images = noise(4) // 3 + 40  # dark and pale: without standardizing, the answers are others
    logits, probabilities = (getattr(ours, name)(images) for name in ("logits", "probabilities"))
    torch.testing.assert_close(theirs.logits(images), logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.probabilities(images), probabilities, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.logits(images.rot90(1, (2, 3))), logits, atol=1e-4, rtol=1e-4)
    ours.network.standardize = False
    assert (ours.logits(images) - logits).abs().max() > 0.01


def test_no_export_tells_where_it_was_made(exports):
    for exported in exports.values():
        content = exported.path.read_bytes()
        assert str(package.__path__[0]).encode() not in content
        assert b"stack_trace" not in content


def test_an_export_says_how_it_compared(exports):
    for (kind, layout), exported in exports.items():
        assert exported.agreement.images == exported.agreement.same_class == 8
        assert exported.agreement.cells == 0
        assert 0 <= exported.agreement.largest_difference < 1e-4
        assert exported.bytes == exported.path.stat().st_size
        assert exported.layout == (None if kind == "safetensors" else layout)


def test_cells_of_the_run_are_compared_too(dataset, tmp_path):
    exported = export_run(write_run_on(dataset, tmp_path / "run"), format="safetensors")
    cells = min(16, len(dataset.split("val")))
    assert cells > 0
    assert (exported.agreement.cells, exported.agreement.images) == (cells, 8 + cells)


def test_cells_of_other_data_are_not(dataset, tmp_path):
    run = write_run_on(dataset, tmp_path / "run", data_fingerprint="00" * 32)
    assert export_run(run, format="safetensors").agreement.cells == 0


def test_without_calibration_probabilities_are_the_plain_softmax(tmp_path):
    write_run(tmp_path, replace(CARD, calibration=None))
    exported = export_run(tmp_path, format="torch-export")
    logits, probabilities = torch.export.load(exported.path).module()(as_layout(noise(4), "nhwc"))
    torch.testing.assert_close(probabilities, torch.softmax(logits, dim=1))


def test_the_file_of_a_model_is_as_good_as_its_run(run, tmp_path):
    file = tmp_path / "given.safetensors"
    file.write_bytes((run / "best_model.safetensors").read_bytes())
    exported = export_run(file, format="safetensors")
    assert exported.path == tmp_path / "export" / "model.safetensors"
    assert exported.card.is_file()


def with_another_temperature(deployed, card):
    return pack_torch_export(Deployed(deployed.model, deployed.layout, 2 * deployed.temperature), card)


def with_another_weight(deployed, card, by=1.0):
    changed = deepcopy(deployed)
    with torch.no_grad():
        changed.model.backbone.get_classifier().weight[0, 0] += by
    return pack_torch_export(changed, card)


def with_a_weight_that_is_no_number(deployed, card):
    return with_another_weight(deployed, card, by=float("nan"))


def with_another_order_of_colours(deployed, card):
    class Swapped(Deployed):
        def forward(self, images):
            return super().forward(images.flip(-1))

    return pack_torch_export(Swapped(deployed.model, deployed.layout, deployed.temperature).eval(), card)


@pytest.mark.parametrize(
    ("pack", "what"),
    [
        (with_another_temperature, "a probability"),
        (with_another_weight, "a logit"),
        (with_a_weight_that_is_no_number, "nan in a logit"),
        (with_another_order_of_colours, "a logit"),
    ],
)
def test_an_export_that_answers_otherwise_is_refused_and_leaves_nothing(run, tmp_path, monkeypatch, pack, what):
    kind = KINDS["torch-export"]
    monkeypatch.setitem(formats.KINDS, "torch-export", Kind(kind.file, pack, kind.load))
    with pytest.raises(HemafastError, match=f"differs from the model by .*{what}"):
        export_run(run, tmp_path / "new", format="torch-export")
    assert not (tmp_path / "new").exists()


def test_an_export_that_fails_leaves_the_one_before_as_it_was(run, tmp_path, monkeypatch):
    export_run(run, tmp_path, format="safetensors")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr("hemafast.deploy.export.TOLERANCE", -1.0)
    with pytest.raises(HemafastError, match="nothing was written"):
        export_run(run, tmp_path, format="safetensors")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_tolerance_grows_with_the_logits_and_is_no_wider():
    class Constant(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = torch.tensor([logits])

        def forward(self, images):
            return self.logits.expand(len(images), -1)

    def differing_by(difference, largest):
        deployed = Deployed(Constant([largest, 0.0]), "nchw", 1.0)
        logits = torch.tensor([[largest, difference]])
        return compare(deployed, lambda images: (logits, torch.softmax(logits, dim=1)), [(noise(1), False)])

    for largest in (0.5, 1.0, 80.0):
        limit = TOLERANCE * max(1, largest)
        assert differing_by(0.9 * limit, largest).largest_difference == pytest.approx(0.9 * limit)
        with pytest.raises(HemafastError, match="a logit"):
            differing_by(1.1 * limit, largest)


class Branching(nn.Module):
    """Takes another way for dark images, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, images):
        means = images.mean(dim=(2, 3))
        return self.layer(means) if means.sum() > 0 else means


@pytest.mark.parametrize("pack", [pack_torch_export, pack_onnx])
def test_a_network_that_cannot_be_traced_is_named_with_a_way_out(pack, capfd):
    model = Classifier(Branching(), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))
    with pytest.raises(HemafastError, match=r"test_resnet cannot be exported.*--format\) safetensors"):
        pack(Deployed(model, "nchw", 1.0).eval(), CARD)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_missing_is_named_with_its_extra(run, tmp_path, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = hemafast("export", run, "--output", tmp_path / "new")
    assert result.returncode == 2
    assert package in result.stderr
    assert "pip install 'hemafast[export]'" in result.stderr
    assert not (tmp_path / "new").exists()


def test_onnx_runtime_is_told_to_send_no_usage_data_before_it_is_imported(monkeypatch):
    told = []

    def refuse(*_):
        told.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
        raise HemafastError("not imported", "")

    monkeypatch.setattr(formats, "require", refuse)
    for use in (lambda: formats.load_onnx(b""), lambda: pack_onnx(None, CARD)):
        with monkeypatch.context() as patch, pytest.raises(HemafastError, match="not imported"):
            patch.setenv("ORT_DISABLE_TELEMETRY", "")  # so that it is put back
            del os.environ["ORT_DISABLE_TELEMETRY"]
            use()
    assert told == ["1", "1"]


def test_a_pickle_is_refused_and_not_executed(tmp_path):
    proof, files = hostile_checkpoints(tmp_path)
    for file in files:
        result = hemafast("export", file, "--output", tmp_path / "new")
        assert result.returncode == 2, file
        assert result.stderr.startswith("error: ")
        assert len(result.stderr.strip().splitlines()) == 1
    assert len(files) == 6
    assert not proof.exists()
    assert not (tmp_path / "new").exists()


def test_the_payload_of_that_test_works(tmp_path):
    proof, files = hostile_checkpoints(tmp_path)
    torch.load(next(file for file in files if file.name == "zipped.ckpt"), weights_only=False)
    assert proof.exists()


def test_a_run_without_a_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "nowhere.safetensors"):
        result = hemafast("export", missing)
        assert result.returncode == 2
        assert result.stderr.startswith("error: There is no ")
        assert str(missing) in result.stderr


def test_the_command_prints_what_it_wrote_and_how_it_compared(run, tmp_path):
    result = hemafast("export", run, "--format", "safetensors", "--output", tmp_path)
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "model.safetensors") in result.stdout
    assert str(tmp_path / "MODEL_CARD.md") in result.stdout
    assert "8 images" in result.stdout


def test_the_command_as_json(run, tmp_path):
    result = hemafast("export", run, "--format", "torch-export", "--layout", "nchw", "--output", tmp_path, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    said = json.loads(result.stdout)
    assert said["path"] == str(tmp_path / "model.pt2")
    assert said["card"] == str(tmp_path / "MODEL_CARD.md")
    assert (said["format"], said["layout"], said["images"], said["cells"]) == ("torch-export", "nchw", 8, 0)
    assert said["bytes"] == (tmp_path / "model.pt2").stat().st_size
    assert said["opset"] is None
    assert 0 <= said["largest_difference"] < 1e-4


def test_an_unknown_format_or_layout_is_refused(run):
    assert hemafast("export", run, "--format", "pickle").returncode == 2
    assert hemafast("export", run, "--layout", "hwcn").returncode == 2
