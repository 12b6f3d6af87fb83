"""What is measured without labels, and that a change is taken only where it is worth something."""

import numpy as np
import pytest
import torch

from hemafast.model import build_model
from hemafast.progress import SILENT
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


def judged_as(answers, network, pixels, monkeypatch):
    """What is chosen if the candidates answer so, each in turn, for all images."""
    turns = iter(answers)
    monkeypatch.setattr(choose, "answers_of", lambda network, pixels: torch.tensor(next(turns)))
    return choose.best_candidate(network, pixels, torch.full((3,), 200.0), SILENT)


SURE = np.eye(3)[np.arange(20) % 3]
OTHER = np.eye(3)[(np.arange(20) + 1) % 3]
UNSURE = 0.7 * np.eye(3)[np.arange(20) % 3] + 0.1


def test_the_candidate_that_most_others_agree_with_is_taken(network, pixels, monkeypatch):
    mixed = np.where(np.arange(20)[:, None] < 3, OTHER, SURE)
    chosen, judged = judged_as([UNSURE[::-1].copy(), OTHER, mixed, SURE, mixed, mixed], network, pixels, monkeypatch)
    assert (chosen.white, chosen.share) == (False, choose.SHARES[2])
    assert chosen.consensus == 1
    assert [row["chosen"] for row in choose.table(judged, chosen)] == [False, False, True, False, False, False]


@pytest.mark.parametrize("answers", [[SURE] * 6, [OTHER, *[SURE] * 5], [SURE, *[UNSURE] * 5]])
def test_the_network_stays_as_it_is_where_no_change_gives_more_information(network, pixels, monkeypatch, answers):
    chosen, judged = judged_as(answers, network, pixels, monkeypatch)
    assert chosen is judged[0]
    assert chosen.network is network


def test_a_network_without_batch_norm_and_training_set_has_one_candidate(pixels):
    network = build_model("test_vit", 3, 32).eval()
    chosen, judged = choose.best_candidate(network, pixels, None, SILENT)
    assert judged == [chosen]
    assert chosen.name == "no change"
