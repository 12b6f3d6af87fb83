import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))

import project_scaling  # scripts beside the package, not parts of it
import scaling_model


def test_page_is_what_the_tool_writes():
    text = project_scaling.PAGE.read_text(encoding="utf-8")
    assert project_scaling.render(text) == text, "run: python tools/project_scaling.py"


def test_flops_of_resnet18_are_those_of_its_paper():
    forward = 2 * 1.8e9  # 1.8 G multiplications with additions
    assert scaling_model.count("resnet18").flops == pytest.approx(3 * forward, rel=0.02)


def test_backward_of_depthwise_convolutions_is_counted_by_group():
    forward = 2 * 0.39e9
    assert scaling_model.count("efficientnet_b0").flops == pytest.approx(3 * forward, rel=0.03)


@pytest.mark.parametrize("card", scaling_model.CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("batch", project_scaling.BATCHES)
@pytest.mark.parametrize("model", project_scaling.MODELS)
def test_efficiency_never_rises_with_gpus(model, batch, card):
    work, share = scaling_model.count(model), scaling_model.anchored_share()
    each = [work.rate(card, batch, gpus, share) / gpus for gpus in (1, 2, 4, 8, 16, 64, 256)]
    assert each == sorted(each, reverse=True)


@pytest.mark.parametrize("card", scaling_model.CARDS, ids=lambda card: card.name)
@pytest.mark.parametrize("batch", project_scaling.BATCHES)
@pytest.mark.parametrize("model", project_scaling.MODELS)
def test_memory_binds_and_backward_hides_the_exchange_as_the_page_says(model, batch, card):
    work, share = scaling_model.count(model), scaling_model.anchored_share()
    moved = (batch * work.image_bytes + work.step_bytes) / (card.memory * share)
    buckets = -(-4 * work.parameters // scaling_model.BUCKET)
    assert work.seconds(card, batch, 1, share) == pytest.approx(moved)
    latency = work.seconds(card, batch, 64, share) - moved
    assert latency == pytest.approx(buckets * scaling_model.LATENCY_HOSTS)


def test_first_anchor_is_met():
    (model, pixels, batch), published = next(iter(scaling_model.ANCHORS.items()))
    rate = scaling_model.count(model, pixels).rate(scaling_model.A100, batch, 1, scaling_model.anchored_share())
    assert rate == pytest.approx(published[1])
