"""The attention head: what it computes, what it finds in bags with a rule and without, how it is stored."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hemafast.errors import HemafastError
from hemafast.patients.attention import GatedAttention, apply, fit, load_head, look_at, save_head
from hemafast.patients.learned import Bags, _verdict, applied, learn


def bags_of(patients, shares, seed=0, dimensions=24, gap=4.0):
    """Noise, of which a share of the cells of each patient lies elsewhere, and which cells these are."""
    generator = np.random.default_rng(seed)
    sizes = generator.integers(20, 60, patients)
    place = np.repeat(np.arange(patients), sizes)
    features = generator.normal(size=(len(place), dimensions)).astype(np.float32)
    odd = generator.random(len(place)) < np.resize(shares, patients)[place]
    features[odd, :2] += gap
    flat = np.full((patients, 2), 0.5)  # the classes of the cells tell nothing
    names = tuple(f"p{number}" for number in range(patients))
    return Bags(names, features, place, flat), odd


def labels_of(bags):
    return {name: ("ill", "well")[number % 2] for number, name in enumerate(bags.patients)}


@pytest.fixture(scope="module")
def planted():
    bags, odd = bags_of(40, (0.3, 0.02))
    return bags, odd, learn(bags, labels_of(bags), "network")


def test_a_planted_rule_is_found_in_patients_that_were_held_out(planted):
    _, _, learned = planted
    assert learned.scores["auroc"] > 0.9
    assert learned.scores["ci95"]["auroc"][0] > 0.8
    assert learned.scores["verdict"].startswith("The cells tell the labels")
    assert learned.scores["permutation"] == {"p": 0.05, "permutations": 19, "as_high": 0}
    assert "0 of 19 permutations of the labels as high, p = 0.05" in learned.scores["verdict"]
    assert learned.scores["differential"]["auroc"] == 0.5  # the classes of the cells do not hold the rule
    assert learned.scores["patients"] == {"ill": 20, "well": 20}


def test_the_cells_that_decide_get_the_attention(planted):
    bags, odd, learned = planted
    ill = bags.place % 2 == 0
    assert learned.attention[odd & ill].mean() > 1.4 * learned.attention[~odd & ill].mean()
    np.testing.assert_allclose(np.bincount(bags.place, learned.attention), 1, rtol=1e-5)


@pytest.mark.parametrize(("p", "words"), [(0.06, "Nothing shows"), (0.05, "The cells tell the labels")])
def test_permutations_decide_and_not_the_interval(p, words):
    scores = {"auroc": 0.66, "ci95": {"auroc": [0.52, 0.8]}}
    said = _verdict(40, scores, {"p": p, "permutations": 99, "as_high": 5})
    assert said.startswith(words)
    assert f"5 of 99 permutations of the labels as high, p = {p}" in said


def test_no_more_permutations_are_drawn_once_ten_score_as_high():
    bags, _ = bags_of(12, (0.1,), dimensions=4)
    scores = learn(bags, labels_of(bags), "network").scores
    assert scores["verdict"].startswith("Nothing shows that the cells tell the labels")
    found = scores["permutation"]
    assert found["as_high"] == 10
    assert found["permutations"] < 19
    assert found["p"] == 10 / found["permutations"]


def test_patients_without_a_label_are_answered_and_not_learned_from():
    bags, _ = bags_of(24, (0.4, 0.0), seed=1)
    known = {name: label for name, label in labels_of(bags).items() if name not in ("p0", "p1")}
    learned = learn(bags, known, "network")
    assert learned.scores["patients"] == {"ill": 11, "well": 11}
    assert learned.probabilities[0, 0] > 0.5 > learned.probabilities[1, 0]


def test_few_patients_are_said():
    bags, _ = bags_of(12, (0.4, 0.0))
    assert "12 patients are few" in learn(bags, labels_of(bags), "network").scores["verdict"]


@pytest.mark.parametrize(("patients", "known"), [(8, 8), (12, 5), (12, 1)])
def test_too_few_patients_are_refused(patients, known):
    bags, _ = bags_of(patients, (0.4, 0.0))
    labels = dict(list(labels_of(bags).items())[:known])
    with pytest.raises(HemafastError, match="Too few patients"):
        learn(bags, labels, "network")


def test_one_label_is_too_few():
    bags, _ = bags_of(12, (0.4,))
    with pytest.raises(HemafastError, match="Too few patients to learn from: 12 patients with ill"):
        learn(bags, dict.fromkeys(bags.patients, "ill"), "network")


def test_the_same_bags_give_the_same_head_and_leave_random_states_alone():
    bags, _ = bags_of(10, (0.4, 0.0))
    labels = np.arange(10) % 2
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    heads = [fit(look_at(bags.features, bags.place, 10), labels, 2) for _ in range(2)]
    assert torch.equal(before, torch.random.get_rng_state())
    for one, other in zip(heads[0].parameters(), heads[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_attention_is_that_of_the_formula():
    """Against the equations of Ilse et al., one patient at a time."""
    torch.manual_seed(0)
    head = GatedAttention(5, 3, 2).eval()
    head.axes.normal_()
    torch.nn.init.normal_(head.weigh.weight)
    torch.nn.init.normal_(head.classify.weight)
    cells, place = torch.randn(9, 5), torch.tensor([0, 1, 0, 1, 1, 0, 0, 1, 1])
    with torch.inference_mode():
        logits, attention = head(head.reduced(cells), place, 2)
        for patient in range(2):
            seen = head.reduced(cells[place == patient])
            scores = head.weigh(torch.tanh(head.sight(seen)) * torch.sigmoid(head.gate(seen)))
            weights = scores.softmax(dim=0)
            torch.testing.assert_close(attention[place == patient], weights[:, 0])
            torch.testing.assert_close(logits[patient], head.classify((weights * seen).sum(0)))


def test_the_order_of_cells_changes_nothing():
    bags, _ = bags_of(6, (0.4, 0.0))
    head = fit(look_at(bags.features, bags.place, 6), np.arange(6) % 2, 2)
    order = np.random.default_rng(0).permutation(len(bags.place))
    once, _ = apply(head, bags.features, bags.place, 6)
    again, _ = apply(head, bags.features[order], bags.place[order], 6)
    np.testing.assert_allclose(once, again, atol=1e-6)


def test_a_stored_head_answers_as_before(planted, tmp_path):
    bags, _, learned = planted
    save_head(tmp_path / "head.safetensors", learned.head)
    head = load_head(tmp_path / "head.safetensors", "network")
    np.testing.assert_array_equal(applied(head, bags).probabilities, applied(learned.head, bags).probabilities)
    assert (head.labels, head.patients) == (("ill", "well"), 40)


def test_a_head_of_another_network_is_refused(planted, tmp_path):
    save_head(tmp_path / "head.safetensors", planted[2].head)
    with pytest.raises(HemafastError, match="features of another model"):
        load_head(tmp_path / "head.safetensors", "other")


def damaged(file, change):
    with torch.inference_mode():
        tensors = load_file(file)
        card = {"labels": ["a", "b"], "network": "network", "patients": 4}
        metadata = {"format": "hemafast attention 1", "card": json.dumps(card)}
        change(tensors, metadata)
        save_file(tensors, file, metadata)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: tensors.pop("axes"),
        lambda tensors, metadata: tensors.update(axes=tensors["axes"][0].contiguous()),
        lambda tensors, metadata: tensors["mean"].fill_(torch.nan),
        lambda tensors, metadata: metadata.update(format="other"),
        lambda tensors, metadata: metadata.update(card="{"),
        lambda tensors, metadata: metadata.update(card='{"labels": ["a"], "network": "n", "patients": 4}'),
        lambda tensors, metadata: metadata.update(card='{"labels": ["a", "b", "c"], "network": "n", "patients": 4}'),
    ],
)
def test_a_damaged_head_is_refused(planted, tmp_path, change):
    file = tmp_path / "head.safetensors"
    save_head(file, planted[2].head)
    damaged(file, change)
    with pytest.raises(HemafastError, match="cannot be read"):
        load_head(file, "network")


def test_weights_that_were_overwritten_in_place_are_refused(planted, tmp_path):
    file = tmp_path / "head.safetensors"
    save_head(file, planted[2].head)
    data = bytearray(file.read_bytes())
    data[-40:-38] = b"\0\0"
    file.write_bytes(data)
    with pytest.raises(HemafastError, match="its weights were overwritten"):
        load_head(file, "network")


def test_no_head_and_no_safetensors_are_refused(tmp_path):
    with pytest.raises(HemafastError, match="cannot be read"):
        load_head(tmp_path / "none.safetensors", "network")
    (tmp_path / "text.safetensors").write_text("no head")
    with pytest.raises(HemafastError, match="cannot be read"):
        load_head(tmp_path / "text.safetensors", "network")


def test_heads_for_three_labels_are_scored_too():
    bags, _ = bags_of(30, (0.6, 0.2, 0.0), seed=2)
    known = {name: ("acute", "chronic", "none")[number % 3] for number, name in enumerate(bags.patients)}
    learned = learn(bags, known, "network")
    assert learned.probabilities.shape == (30, 3)
    assert learned.scores["auroc"] > 0.75


def test_cells_far_apart_do_not_overflow():
    seen = look_at(np.float32([[0, 0], [1, 1], [2, 0], [0, 2]]), np.arange(4), 4)
    head = fit(seen, np.array([0, 1, 0, 1]), 2)
    answers, attention = apply(head, np.float32([[1e6, -1e6], [0, 0]]), np.array([0, 0]), 1)
    assert np.isfinite(answers).all()
    assert attention.sum() == pytest.approx(1)
