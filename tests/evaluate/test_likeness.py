"""Images like those of home are told from images of other colours, contents and sets; what is stored is checked."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import roc_auc_score

from hemafast.engine.checkpoint import ModelCard, View
from hemafast.errors import HemafastError
from hemafast.evaluate.likeness import (
    ALARM,
    PARTS,
    Watching,
    colours_of,
    describe,
    fit_likeness,
    joined,
    judge,
    learn,
    load_likeness,
    save_likeness,
)
from hemafast.model import build_model

CARD = ModelCard(
    backbone="test_resnet",
    classes=("basophil", "monocyte"),
    image_size=32,
    view=View(packed_size=64, field_of_view=None, um_per_pixel={"Lab": None}),
    domains=("Lab",),
    epoch=3,
    started_from="random weights",
    data_fingerprint="ab" * 32,
    drawn_data=True,
)


def fitted(colours, features, labels):
    """Of images of one domain."""
    return fit_likeness(colours, features, labels, np.full(len(labels), "Lab"))


def cells(images, seed, colour=0.0, content=0.0, width=1280):
    """Colours (images, 6), features (images, width) and labels of two classes."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 2, images)
    colours = draw.normal(0.5 + colour, 0.05, (images, 6))
    features = draw.normal(0, 1, (images, width)) + 4 * np.eye(2, width)[labels] * np.sqrt(width)
    features[:, 2] += content * np.sqrt(width)
    return torch.from_numpy(colours).float(), torch.from_numpy(features).float(), labels


@pytest.fixture(scope="module")
def home():
    return fitted(*cells(300, 0))


def test_the_likeness_of_new_images_of_home_is_spread_evenly(home):
    likeness, at_home = home
    found = likeness(*cells(2000, 1)[:2]).numpy()
    for values in (at_home.numpy(), found):
        assert ((values > 0) & (values <= 1)).all()
        shares = [(values <= level).mean(axis=0) for level in (0.05, 0.5)]
        assert np.abs(np.array(shares) - [[0.05], [0.5]]).max() < 0.1
    assert (at_home[:, 0] <= ALARM).float().mean() <= ALARM  # by construction


@pytest.mark.parametrize(("change", "part"), [({"colour": 0.3}, "colour"), ({"content": 4.0}, "content")])
def test_other_colours_and_other_contents_are_told_apart(home, change, part):
    likeness, _ = home
    like, unlike = likeness(*cells(300, 1)[:2]), likeness(*cells(300, 2, **change)[:2])
    truth = np.repeat([1, 0], 300)
    scores = {name: roc_auc_score(truth, torch.cat([like, unlike])[:, PARTS.index(name)]) for name in PARTS}
    other = "content" if part == "colour" else "colour"
    assert scores[part] > 0.99
    assert scores["likeness"] > 0.97
    assert 0.4 < scores[other] < 0.6


def test_an_image_of_home_is_not_its_own_neighbour():
    colours, features, labels = cells(100, 3)
    colours[0] += 5.0
    features[0] *= -1
    _, at_home = fitted(colours, features, labels)
    assert at_home[0].tolist() == pytest.approx([0.01, 0.01, 0.01])


def test_a_rare_class_is_kept_whole():
    colours, features, _ = cells(600, 4)
    rare = np.arange(600) < 12
    features[:12] = 0
    features[:12, 5] = 1
    likeness, _ = fitted(colours, features, rare.astype(np.int64))
    assert len(likeness.features) == 256
    assert int((likeness.features[:, 5] > 0.99).sum()) == 12


def of_two_domains(few, seed=0):
    """Images of home: 300 of a large domain and `few` of one with other colours and other contents."""
    parts = zip(cells(300, seed), cells(few, seed + 1, colour=0.3, content=4.0), strict=True)
    colours, features, labels = (np.concatenate(one) for one in parts)
    return torch.from_numpy(colours), torch.from_numpy(features), labels, np.repeat(["large", "small"], [300, few])


@pytest.mark.parametrize("few", [12, 25, 100])
def test_a_small_domain_is_home_too(few):
    likeness, at_home = fit_likeness(*of_two_domains(few))
    assert (at_home[:, 0] <= ALARM).float().mean() <= ALARM
    for change in ({}, {"colour": 0.3, "content": 4.0}):
        new = likeness(*cells(400, 7, **change)[:2])
        assert (new[:, 0] <= ALARM).float().mean() < 0.2, "in the mean of many draws it is 5 %"
    strange = likeness(*cells(400, 8, colour=-0.3, content=8.0)[:2])
    assert (strange[:, 0] <= ALARM).all()


def test_a_domain_of_too_few_images_is_part_of_the_largest():
    likeness, _ = fit_likeness(*of_two_domains(9))
    assert likeness.counts.tolist() == [256]
    assert likeness.spreads.tolist() == [[1.0], [1.0]]
    many = fit_likeness(*cells(300, 0), np.array([f"domain {number % 60}" for number in range(300)]))[0]
    assert many.counts.tolist() == [256]


def test_colours_are_means_and_spreads_of_optical_density():
    images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    density = -np.log((images.numpy()[:, :, ::2, ::2].astype(np.float64) + 1) / 256)
    expected = np.concatenate([density.mean((2, 3)), density.std((2, 3), ddof=1)], axis=1)
    np.testing.assert_allclose(colours_of(images), expected, rtol=1e-4)
    grey = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert colours_of(grey).abs().max() == 0


def test_one_colour_and_black_images_break_nothing():
    colours, features, labels = torch.zeros(50, 6), torch.zeros(50, 8), np.zeros(50, np.int64)
    likeness, at_home = fitted(colours, features, labels)
    assert torch.isfinite(at_home).all()
    assert torch.isfinite(likeness(colours, features)).all()


def test_watching_changes_no_logit_and_passes_through_the_backbone_once(monkeypatch):
    model = build_model("test_resnet", 5, 32).eval()
    images = torch.randint(0, 256, (7, 3, 32, 32), dtype=torch.uint8)
    calls, through = [], model.backbone.forward_features
    with torch.inference_mode():
        expected, features = model(images), model.features(images)
        monkeypatch.setattr(model.backbone, "forward_features", lambda seen: calls.append(len(seen)) or through(seen))
        watching = Watching(model, joined)
        logits = torch.cat([watching(images[:4]), watching(images[4:])])
    assert torch.allclose(logits, expected, atol=1e-6)
    assert calls == [4, 3]
    torch.testing.assert_close(watching.noted(), joined(colours_of(images), features), atol=1e-5, rtol=1e-4)


def test_images_beside_those_of_home_are_judged_by_them():
    colours, features, labels = (
        np.concatenate(parts) for parts in zip(cells(60, 5), cells(40, 6, colour=0.5), strict=True)
    )
    home = np.arange(100) < 60
    notes = torch.cat([torch.from_numpy(colours), torch.from_numpy(features)], dim=1)
    likeness, found = learn(notes, labels, np.full(100, "Lab"), home)
    assert likeness.images == 60
    assert (found[60:, 0] <= ALARM).all()
    assert (found[:60, 0] <= ALARM).float().mean() <= ALARM


def alike(alarms, others, level=0.5):
    """Likenesses of a set: so many alarms, the others evenly spread around `level`."""
    rest = np.linspace(0.06, 2 * level - 0.06, others)
    return np.stack([np.concatenate([np.full(alarms, 0.01), rest])] * 3, axis=1)


@pytest.mark.parametrize(
    ("likenesses", "fitted_on", "unlike"),
    [
        (alike(5, 95), 300, False),  # as many as at home
        (alike(30, 70), 300, True),
        (alike(3, 1), 300, True),
        (alike(1, 0), 300, True),  # one image is a set of its own
        (alike(0, 1), 300, False),
        (alike(1, 9), 300, False),  # a tenth, and too few to tell
        (alike(90, 910), 300, False),  # surely more than at home, but too few to matter
        (alike(14, 86), 40, False),  # the alarms of home are not known well enough
        (alike(0, 100, level=0.25), 300, True),  # no alarm, but all a little unlike
    ],
)
def test_a_set_is_unlike_where_it_is_sure_and_matters(likenesses, fitted_on, unlike):
    judged = judge(likenesses, fitted_on)
    assert judged["unlike"] is unlike
    assert judged["images"] == len(likenesses)
    assert judged["share"] == pytest.approx((likenesses[:, 0] <= ALARM).mean())
    low, high = judged["ci95"]
    assert 0 <= low <= judged["share"] <= high <= 1
    assert (describe(judged) is not None) is unlike


def test_sets_of_home_are_rarely_unlike(home):
    likeness, _ = home
    found = likeness(*cells(4000, 9)[:2]).numpy()
    verdicts = [
        judge(found[start : start + size], 300)["unlike"] for size in (10, 100) for start in range(0, 4000, 100)
    ]
    assert np.mean(verdicts) < 0.05


def test_images_without_an_answer_are_left_out():
    some = alike(5, 5)
    some[:5] = np.nan
    assert judge(some, 300)["images"] == 5
    nothing = judge(np.full((3, 3), np.nan), 300)
    assert (nothing["images"], nothing["unlike"], describe(nothing)) == (0, False, None)


def test_what_is_unlike_is_named():
    some = alike(30, 70)
    some[:, 2] = 0.5
    said = describe(judge(some, 300))
    assert "30 of 100 images are unlike those that the model was trained on (30% in colour; 5% at home)" in said
    assert "content" not in said


@pytest.fixture
def stored(home, tmp_path):
    """A model file with a likeness beside it."""
    file = tmp_path / "best_model.safetensors"
    save_likeness(file, CARD, home[0])
    return file


def test_a_stored_likeness_answers_the_same(stored, home):
    images = cells(50, 7)[:2]
    assert torch.equal(load_likeness(stored, CARD)(*images), home[0](*images))
    assert stored.with_name("likeness.safetensors").stat().st_size < 1_000_000


def test_none_removes_what_was_stored(stored):
    save_likeness(stored, CARD, None)
    assert load_likeness(stored, CARD) is None
    assert list(stored.parent.iterdir()) == []


@pytest.mark.parametrize("other", [{"epoch": 4}, {"data_fingerprint": "cd" * 32}])
def test_a_likeness_of_other_weights_is_ignored_with_a_warning(stored, other, caplog):
    assert load_likeness(stored, replace(CARD, **other)) is None
    assert "likeness.safetensors ignored" in caplog.text


def damage(file, **changes):
    tensors = load_file(file) | changes
    identity = {"format": "pt", "epoch": "3", "data_fingerprint": "ab" * 32}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file, identity)


def overwrite(file, place, content):
    """Other numbers that are as good as those that were there."""
    data = bytearray(file.read_bytes())
    data[place : place + len(content)] = content
    file.write_bytes(data)


def test_a_likeness_of_an_earlier_version_has_no_digest_and_one_domain(stored, home):
    damage(stored.with_name("likeness.safetensors"), counts=None, spreads=None)
    images = cells(50, 7)[:2]
    assert torch.equal(load_likeness(stored, CARD)(*images), home[0](*images))


@pytest.mark.parametrize(
    "change",
    [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(file.read_bytes()[:-100]),
        lambda file: damage(file, home=None),
        lambda file: damage(file, home=torch.zeros(2, 300)),
        lambda file: damage(file, home=torch.tensor(1.0)),
        lambda file: damage(file, centre=torch.full((6,), torch.nan)),
        lambda file: damage(file, colours=torch.zeros(3, 6), features=torch.zeros(3, 8).half()),
        lambda file: damage(file, whitening=torch.zeros(6, 6, dtype=torch.int64)),
        lambda file: damage(file, counts=torch.tensor([250, 5])),
        lambda file: damage(file, counts=torch.tensor([254, 2]), spreads=torch.ones(2, 2)),
        lambda file: damage(file, counts=torch.tensor([-256, 512]), spreads=torch.ones(2, 2)),
        lambda file: damage(file, spreads=torch.zeros(2, 1)),
        lambda file: damage(file, more=torch.zeros(1)),
        lambda file: overwrite(file, -1000, b"\0\0"),
    ],
)
def test_a_damaged_likeness_is_refused_with_file_and_remedy(stored, change):
    change(stored.with_name("likeness.safetensors"))
    with pytest.raises(HemafastError, match=r"likeness\.safetensors cannot be read .*Delete it.*hemafast evaluate"):
        load_likeness(stored, CARD)


def test_a_likeness_of_another_network_is_refused(stored):
    likeness = load_likeness(stored, CARD)
    with pytest.raises(HemafastError, match="1280 features, but the network has 96"):
        likeness(torch.zeros(2, 6), torch.zeros(2, 96))
