"""The model card: what it says, what it says only if it is known, and names that would be more than text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from exported import CARD, card_on, noise, random_model, write_run, write_run_on
from markdown_it import MarkdownIt

from hemafast.deploy.export import export_run
from hemafast.deploy.model_card import FEW, model_card, training_counts
from hemafast.engine.checkpoint import Calibration, View
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.preparation.images.depth import Range
from hemafast.preparation.scale import ScaleEstimate
from hemafast.preparation.schema import Scale


class Html(HTMLParser):
    """What a reader of the card sees: tags, cells of tables row by row, items of lists."""

    def __init__(self, markdown):
        super().__init__()
        self.tags, self.open, self.rows, self.items = [], [], [], []
        self.feed(MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag == "li":
            self.items.append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "li" in self.open:
            self.items[-1] += data


def card_of(folder, **options):
    """The card of a run, exported the fastest way."""
    return export_run(folder, format="safetensors", **options).card.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def scored(dataset, tmp_path_factory):
    """A run of random weights on the small data set, evaluated; read it, never change it."""
    folder = write_run_on(dataset, tmp_path_factory.mktemp("scored") / "run", image_size=56)
    return folder, evaluate_run(folder, device="cpu")


def test_it_says_what_the_model_is_and_what_it_is_not(tmp_path):
    text = card_of(write_run(tmp_path))
    assert "not a medical device" in text
    assert "research use only" in text
    assert "test_resnet" in text
    assert CARD.data_fingerprint in text
    assert "random weights, as asked for" in text
    assert "epoch 3" in text
    assert "Not evaluated." in text
    assert "Acevedo_20" in text
    assert "photographed" in text
    assert "DRAWN" not in text


def test_classes_stand_in_the_order_of_the_outputs(tmp_path):
    rows = Html(card_of(write_run(tmp_path))).rows
    assert [row[:2] for row in rows if row[0].isdigit()] == [["0", "basophil"], ["1", "größe"], ["2", "monocyte"]]


def test_calibration_is_told_or_said_to_be_missing(tmp_path):
    told = card_of(write_run(tmp_path / "a"))
    assert "temperature of 1.700" in told
    assert "fitted on 40 validation images" in told
    assert "0.830 or more, at least 95 %" in told
    assert "blast" not in told
    never = Calibration(temperature=2.0, threshold=None, target=0.9, images=5, blast_threshold=0.125)
    told = card_of(write_run(tmp_path / "b", replace(CARD, calibration=never)))
    assert "At no probability were 90 %" in told
    assert "as a blast from a probability of 0.125" in told
    sets = replace(never, set_thresholds=(0.25, None, 0.5))
    told = card_of(write_run(tmp_path / "d", replace(CARD, calibration=sets)))
    assert "basophil 0.2500, größe never, monocyte 0.5000." in told
    for missing in (None, replace(never, images=0, temperature=1.0)):
        told = card_of(write_run(tmp_path / "c", replace(CARD, calibration=missing)))
        assert "None: probabilities are the plain softmax" in told


def test_drawn_cells_are_said_to_be_drawn(tmp_path):
    text = card_of(write_run(tmp_path, replace(CARD, drawn_data=True)))
    assert text.count("THE DATA IS DRAWN, NOT PHOTOGRAPHED") == 2


def test_the_input_is_described_as_preparation_makes_it(tmp_path):
    steps = Html(card_of(write_run(tmp_path / "a"))).items
    assert any("25 micrometres" in step and "250 pixels of Acevedo_20" in step for step in steps)
    assert any("to 64 by 64 pixels" in step for step in steps)
    assert any("Keep the 56 by 56 pixels in its middle, and scale them to 32 by 32" in step for step in steps)
    whole = replace(CARD, view=View(packed_size=64, field_of_view=None, um_per_pixel={}), image_size=56)
    steps = Html(card_of(write_run(tmp_path / "b", whole))).items
    assert any(step == "Keep the largest square in the middle of the image." for step in steps)
    assert any(step == "Keep the 56 by 56 pixels in its middle." for step in steps)


def test_deep_values_are_described_as_preparation_scaled_them(tmp_path):
    deep = replace(CARD.view, ranges={"Lab": {"integer": Range(0, 4095)}})
    steps = Html(card_of(write_run(tmp_path, replace(CARD, view=deep)))).items
    (first,) = (step for step in steps if step.startswith("Decode"))
    assert first.endswith("drop transparency. Of Lab, integer values of 0 to 4095 (12 bits) become 0 to 255.")
    assert any(step.startswith("Keep the square") for step in steps)


def test_training_images_are_counted_by_class_and_domain(scored, dataset):
    rows = Html(card_of(scored[0])).rows
    counts = training_counts(dataset)
    images = dataset.split("train")
    assert sum(sum(of.values()) for of in counts.values()) == len(images)
    (header,) = [row for row in rows if row[1:2] == ["class"]]
    assert header[2:4] == [f"trained on, {name}" for name in counts]
    for index, label in enumerate(dataset.info.classes):
        (row,) = [row for row in rows if row[:2] == [str(index), label]]
        for place, domain in enumerate(counts, start=2):
            assert int(row[place]) == ((images["domain"] == domain) & (images["label"] == label)).sum()


def test_scores_are_those_of_metrics_json_with_intervals(scored):
    folder, metrics = scored
    html = Html(card_of(folder))
    for name, scores in {**metrics["domains"], "pooled": metrics["pooled"]}.items():
        (row,) = [row for row in html.rows if row[0] == name and len(row) == 6]
        low, high = scores["ci95"]["macro_f1"]
        assert row[1:4] == [
            str(scores["images"]),
            str(scores["classes"]),
            f"{scores['macro_f1']:.3f} ({low:.3f} to {high:.3f})",
        ]
    for index, label in enumerate(metrics["model"]["classes"]):
        (row,) = [row for row in html.rows if row[:2] == [str(index), label]]
        scores = metrics["pooled"]["per_class"].get(label)
        if scores is None:
            assert row[4:] == ["0", "", "", ""]
        else:
            assert row[4] == str(scores["images"])
            assert row[7].startswith(f"{scores['f1']:.3f} (")


def test_limits_name_what_the_data_lacks(scored, dataset):
    folder, metrics = scored
    told = " ".join(Html(card_of(folder)).items)
    assert "No patient ids are known" in told
    assert "no other cells than its classes" in told
    assert "scored best on the validation images" in told
    for domain, counts in training_counts(dataset).items():
        absent = [label for label, count in counts.items() if not count]
        assert absent
        assert re.search(rf"saw no [^.]*{absent[-1]} of {domain} in training", told)
    few = sum(dataset.counts("train") < FEW)
    assert few == len(dataset.info.classes)
    for label, count in zip(dataset.info.classes, dataset.counts("train"), strict=True):
        assert f"{label} ({count})" in told
    if metrics["pooled"]["absent"]:
        assert f"No validation image is of {metrics['pooled']['absent'][0]}" in told


def test_groups_of_the_split_are_named_for_what_they_are(scored, dataset, tmp_path):
    settings = {**dataset.info.settings, "group_pattern": "^(.*)_"}
    grouped = replace(
        dataset, files=replace(dataset.files, info=dataset.info.model_copy(update={"settings": settings}))
    )
    exported, card = export_run(scored[0], tmp_path, format="safetensors"), card_on(dataset)
    said = " ".join(Html(model_card(exported, random_model(card), card, tmp_path, grouped)).items)
    assert "No patient ids" not in said
    assert "only if these groups are patients" in said


def test_the_scale_of_training_is_told_with_how_it_is_known(scored, dataset, tmp_path):
    exported, card = export_run(scored[0], tmp_path, format="safetensors"), card_on(dataset)
    estimate = ScaleEstimate(0.1, 0.08, 0.12, nuclei=28, images=30)
    given, estimated = Scale(source="given", estimate=None), Scale(source="estimated", estimate=estimate)
    for scale, said in [
        (given, "0.1 micrometres a pixel (given)"),
        (estimated, "0.1 micrometres a pixel (estimated from 28 nuclei: 0.08 to 0.12)"),
        (None, "0.1 micrometres a pixel"),
    ]:
        domains = {name: one.model_copy(update={"scale": scale}) for name, one in dataset.info.domains.items()}
        info = dataset.info.model_copy(update={"domains": domains})
        told = replace(dataset, files=replace(dataset.files, info=info))
        items = Html(model_card(exported, random_model(card), card, tmp_path, told)).items
        (item,) = [one for one in items if one.startswith("Acevedo_20: trained on")]
        assert item.endswith(said)


def test_metrics_of_another_model_or_version_are_left_out_with_a_warning(scored, dataset, tmp_path, caplog):
    _, metrics = scored
    run = write_run_on(dataset, tmp_path / "run", image_size=56, epoch=4)
    (run / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    assert "Not evaluated." in card_of(run)
    assert "of another model" in caplog.text
    caplog.clear()
    (run / "metrics.json").write_text('{"schema": 0}', encoding="utf-8")
    assert "Not evaluated." in card_of(run)
    assert "hemafast evaluate" in caplog.text


HOSTILE = (
    "<script>alert(1)</script>",
    "a | b | c",
    "[click](http://evil.example/)",
    "![x](http://evil.example/x.png)",
    "`code`",
    "**bold**",
    "_under_",
    "line\nbreak\r\n# heading",
    "# heading",
    "\\| \\",
    "&lt;b&gt;",
    "<!-- comment",
    "{{ 7 * 7 }}",
    "$x$",
    "http://evil.example",
)


@pytest.fixture
def hostile(tmp_path):
    card = replace(
        CARD,
        classes=HOSTILE,
        domains=HOSTILE,
        view=replace(CARD.view, um_per_pixel=dict.fromkeys(HOSTILE, 0.1)),
        started_from="<img src=x onerror=alert(1)> | weights",
        data_fingerprint="<b>|",
    )
    return card_of(write_run(tmp_path, card))


def test_hostile_names_are_text_in_their_place_and_nothing_else(hostile, tmp_path):
    html, usual = Html(hostile), Html(card_of(write_run(tmp_path / "usual")))
    known = {"table", "thead", "tbody", "tr", "th", "td", "h1", "h2", "p", "strong", "ul", "ol", "li", "pre", "code"}
    assert set(html.tags) <= known
    for tag in ("h1", "h2", "strong", "pre", "code", "table"):
        assert html.tags.count(tag) == usual.tags.count(tag)
    named = [row for row in html.rows if row[0].isdigit()]
    assert [row[1] for row in named] == [" ".join(name.split()) for name in HOSTILE]
    assert {len(row) for row in named} == {2}
    assert "http://evil" not in hostile
    assert "49" not in [row[1] for row in named]


@pytest.mark.parametrize("letter", ["\u202e", "\x00", "\x1b", "\u2028"])
def test_letters_that_cannot_be_seen_are_left_out(tmp_path, letter):
    text = card_of(write_run(tmp_path, replace(CARD, started_from=f"a{letter}b")))
    assert letter not in text
    assert "Training started from: a b." in text


def example_of(card):
    """The Python that a card shows."""
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.mark.parametrize(
    ("options", "images"),
    [
        ({"format": "onnx"}, noise(3).permute(0, 2, 3, 1).numpy()),
        ({"format": "torch-export", "layout": "nchw"}, noise(3)),
        ({"format": "safetensors"}, noise(3)),
    ],
)
def test_the_example_on_the_card_runs_and_answers_as_the_model_does(tmp_path, monkeypatch, options, images):
    exported = export_run(write_run(tmp_path), **options)
    monkeypatch.chdir(exported.path.parent)
    names = {"images": images}
    with torch.inference_mode():
        exec(example_of(exported.card.read_text(encoding="utf-8")), names)
        expected = random_model()(noise(3))
    np.testing.assert_allclose(np.asarray(names["logits"]), expected, atol=1e-4)
    softened = torch.softmax(expected / CARD.calibration.temperature, dim=1)
    np.testing.assert_allclose(np.asarray(names["probabilities"]), softened, atol=1e-4)
