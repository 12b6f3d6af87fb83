"""The page about a run: alone, honest, and safe to open."""

import base64
import io
import json

import numpy as np
import pytest
from page import Page, needs_browser, open_in_browser
from PIL import Image

from hemafast.config import PrepareConfig
from hemafast.errors import HemafastError
from hemafast.evaluate import plots
from hemafast.evaluate.evaluate import evaluate_run, read_metrics
from hemafast.evaluate.plots import plot_confusions, plot_curves
from hemafast.evaluate.report import write_report
from hemafast.prepare.build import prepare

HOSTILE_DOMAINS = ("<script>alert(1)", "\"><img src=x onerror='alert(2)'>")
HOSTILE_CLASSES = ("<b>bold & {{ 7 * 7 }}", "{% raw %}", "$x$")


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory, make_archive, train_on):
    """A scored run on drawn cells, from random weights that nobody asked for, with names meant to break a page."""
    source = tmp_path_factory.mktemp("hostile")
    counts = dict.fromkeys(HOSTILE_CLASSES, 6)
    drawn = {"DRAWN.txt": b"drawn"}
    for seed, domain in enumerate(HOSTILE_DOMAINS):
        make_archive(source / domain, counts, seed=seed, extra=drawn)
    config = PrepareConfig(source=source, output=source / "prepared", pack_sizes=(64,), classes="from-data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(source / ".cache"))
        folder = train_on(prepare(config).folder, epochs=1, pretrained="auto")
    evaluate_run(folder)
    return folder


def test_a_report_needs_no_other_file_and_no_network(scored):
    page = page_of(scored)
    assert page.addresses
    assert page.is_alone
    for address in page.addresses:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            picture.verify()


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_a_report_whole(scored, tmp_path):
    seen = open_in_browser(write_report(scored), tmp_path)
    assert (seen.console, seen.broken, seen.fetched, seen.sideways) == ([], 0, 0, False)
    assert seen.images == page_of(scored).tags.count("img") > 1


def test_a_report_shows_the_scores_of_the_metrics(scored):
    metrics, text = read_metrics(scored), " ".join(page_of(scored).text.split())
    pooled = metrics["pooled"]
    assert f"macro-F1 {pooled['macro_f1']:.3f} 95 % interval {pooled['ci95']['macro_f1'][0]:.3f} to" in text
    for name, scores in metrics["domains"].items():
        low, high = scores["ci95"]["macro_f1"]
        row = f"{scores['macro_f1']:.3f} {low:.3f} to {high:.3f} {scores['accuracy']:.3f} {scores['classes']}"
        assert f"{name} {row} {scores['images']} " in text
    for name, score in pooled["per_class"].items():
        assert f"{name} {score['f1']:.3f}" in text
    assert metrics["data"]["fingerprint"] in text


def test_a_report_on_the_same_files_is_the_same(scored):
    first = write_report(scored).read_bytes()
    assert write_report(scored).read_bytes() == first


def test_a_report_before_an_evaluation_is_refused(run):
    with pytest.raises(HemafastError, match="hemafast evaluate"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_names_of_domains_and_classes_cannot_break_the_page(hostile):
    page = page_of(hostile)
    assert not {"script", "b"} & set(page.tags)
    assert page.handlers == []
    assert all(address.startswith("data:image/png") for address in page.addresses)
    for name in (*HOSTILE_DOMAINS, *HOSTILE_CLASSES):
        assert name in page.text


def test_drawn_data_and_random_weights_are_said_everywhere(hostile):
    warnings = read_metrics(hostile)["warnings"]
    assert ["DRAWN" in warning for warning in warnings] == [True, False]
    assert ["RANDOM WEIGHTS" in warning for warning in warnings] == [False, True]
    page, log = page_of(hostile).text, (hostile / "train.log").read_text(encoding="utf-8")
    for place in (page, log):
        assert "DRAWN, NOT PHOTOGRAPHED" in place
        assert "RANDOM WEIGHTS" in place


def test_a_report_on_photographs_and_chosen_weights_warns_of_nothing(scored):
    page = page_of(scored)
    assert "DRAWN" not in page.text
    assert "RANDOM" not in page.text


def test_a_report_without_a_training_log_leaves_the_curves_out(run):
    evaluate_run(run)
    (run / "training_log.csv").unlink()
    evaluate_run(run)
    page = page_of(run)
    assert page.tags.count("img") == 1
    assert "macro-F1" in page.text


@pytest.mark.parametrize("file", ["machine.json", "config.json"])
def test_a_run_that_lost_a_file_is_refused(run, file):
    evaluate_run(run)
    (run / file).unlink()
    with pytest.raises(HemafastError, match=file):
        write_report(run)


def test_metrics_of_another_program_are_refused(run):
    (run / "metrics.json").write_text(json.dumps({"accuracy": 1}), encoding="utf-8")
    with pytest.raises(HemafastError):
        write_report(run)


def test_the_curves_are_those_of_the_log_phase_by_phase_with_gaps_where_nothing_was_measured(monkeypatch):
    rows = [
        {"epoch": 1, "phase": "train", "loss": 4.0, "f1_macro": 0.1, "lr": 0.5},
        {"epoch": 2, "phase": "train", "loss": 3.0, "f1_macro": 0.2},
        {"epoch": 2, "phase": "val", "loss": 5.0, "f1_macro": 0.3, "f1_macro_Matek_19": 0.4},
    ]
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, target: figures.append(figure))
    plot_curves(io.BytesIO(), rows)
    drawn = [
        {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axis.lines}
        for axis in figures[0].axes
    ]
    assert drawn[0] == {"training": ([1, 2], [4.0, 3.0]), "validation": ([2], [5.0])}
    assert drawn[1] == {"training": ([1, 2], [0.1, 0.2]), "validation": ([2], [0.3]), "Matek_19": ([2], [0.4])}
    ((epochs, rates),) = drawn[2].values()
    assert epochs == [1, 2]
    assert np.array_equal(rates, [0.5, np.nan], equal_nan=True)


@pytest.mark.parametrize("name", ["größe", "a $ b", "<b>&amp;", "", "$\\frac$"])
def test_any_name_of_a_class_can_be_drawn(name):
    stream = io.BytesIO()
    plot_confusions(stream, {name: np.array([[2, 1], [0, 3]])}, [name, "other"])
    with Image.open(stream) as picture:
        picture.verify()
