"""What is changed without labels, and what is measured of it."""

import numpy as np
import pytest
import torch

from hemafast.model import Classifier, build_model
from hemafast.transfer import choose


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        (np.eye(4), 1.0),  # sure and varied
        (np.full((4, 4), 0.25), 0.0),  # not sure
        (np.tile([1.0, 0, 0, 0], (4, 1)), 0.0),  # always the same
        (np.ones((4, 1)), 0.0),
    ],
)
def test_information_is_high_for_answers_that_are_sure_and_varied(probabilities, expected):
    assert choose.information(torch.tensor(probabilities)) == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def network():
    return build_model("test_resnet", 3, 32).eval()


@pytest.fixture
def pixels():
    return torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(2))


SHARES = np.array([0.2, 0.3, 0.5])


def test_the_white_point_is_matched_and_answers_are_sharpened(network, pixels):
    chosen, judged = choose.best_candidate(network, pixels, torch.full((3,), 200.0), SHARES)
    assert [one.name for one in judged] == [
        "no change",
        "white point matched",
        "white point matched, answers sharpened",
    ]
    assert judged[0].network is network
    assert chosen is judged[-1]
    assert chosen.network.mean == judged[1].network.mean != network.mean
    assert [row["chosen"] for row in choose.table(judged, chosen)] == [False, False, True]


def test_a_network_whose_white_point_is_unknown_is_sharpened(network, pixels):
    chosen, judged = choose.best_candidate(network, pixels, None, None)
    assert [one.name for one in judged] == ["no change", "answers sharpened"]
    assert 0 <= chosen.moved <= 1


def test_a_network_without_norms_and_white_point_stays_as_it_is(pixels):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 3)

        def forward_features(self, images):
            return images

        def forward_head(self, maps, pre_logits=False):
            pooled = maps.mean((2, 3))
            return pooled if pre_logits else self.layer(pooled)

        def get_classifier(self):
            return self.layer

    plain = Classifier(Plain(), (0.5,) * 3, (0.5,) * 3).eval()
    chosen, judged = choose.best_candidate(plain, pixels, None, SHARES)
    assert judged == [chosen]
    assert chosen.network is plain
