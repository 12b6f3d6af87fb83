"""A model at work on the first CUDA device: the answers of the CPU."""

import numpy as np
import pytest
import torch

from hemafast.deploy.heat import heat_maps
from hemafast.deploy.model import open_model
from hemafast.deploy.plan import Options, make_plan
from hemafast.deploy.predict import classify
from hemafast.engine.checkpoint import load_best

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("tta", [False, True])
def test_predictions_are_those_of_the_cpu(scored, prepared, tta):
    archives = [str(prepared.folder.parent / name) for name in ("Acevedo_20.zip", "Matek_19.zip")]
    options = (Options(device=device, amp="off", tta=tta) for device in ("cuda", "cpu"))
    gpu, cpu = (classify(make_plan([scored], archives, how)) for how in options)
    assert list(gpu["image"]) == list(cpu["image"])
    assert set(gpu["status"]) == {"ok"}
    columns = [name for name in gpu.columns if name.startswith("p_")]
    np.testing.assert_allclose(gpu[columns], cpu[columns], atol=2e-2)


def test_arrays_are_predicted_and_embedded_as_on_the_cpu(scored):
    arrays = np.random.default_rng(0).integers(0, 256, (5, 70, 60, 3), dtype=np.uint8)
    gpu, cpu = (open_model(scored, device=device, amp="off") for device in ("cuda", "cpu"))
    np.testing.assert_allclose(gpu.embed(arrays), cpu.embed(arrays), rtol=2e-2, atol=2e-2)
    ours, theirs = gpu.predict(arrays), cpu.predict(arrays)
    np.testing.assert_allclose(ours[[*gpu.classes]], theirs[[*cpu.classes]], atol=2e-2)


def test_heat_maps_are_those_of_the_cpu(scored):
    model, card = load_best(scored / "best_model.safetensors")
    size = (2, card.image_size, card.image_size, 3)
    views = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    cpu = heat_maps(model, views, [0, 1])
    np.testing.assert_allclose(heat_maps(model.cuda(), views, [0, 1]), cpu, atol=2e-2)
