"""The page about a run: alone, honest, and safe to open."""

import base64
import io
import json
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from command import hemafast
from hostile import HOSTILE_CLASSES, HOSTILE_DOMAINS
from page import Page, needs_browser, open_in_browser
from PIL import Image

from hemafast.errors import HemafastError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.pictures import confusion_figure, on_page, save, subplots
from hemafast.report.compare import difference
from hemafast.report.page import write_report
from hemafast.report.plots import curve_figures, reliability_figures, validation_figures
from hemafast.run_folder import read_metrics


def page_of(folder):
    return Page(write_report(folder).read_text(encoding="utf-8"))


def test_a_report_needs_no_other_file_and_no_network(scored):
    page = page_of(scored)
    assert page.pictures
    assert page.is_alone
    for address in page.pictures:
        with Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))) as picture:
            picture.verify()


@needs_browser
@pytest.mark.slow
def test_a_browser_shows_a_report_whole(scored, tmp_path):
    seen = open_in_browser(write_report(scored), tmp_path)
    assert (seen.console, seen.broken, seen.fetched, seen.sideways) == ([], 0, 0, False)
    assert seen.images > 1


def test_a_report_shows_the_scores_of_the_metrics(scored):
    metrics, text = read_metrics(scored), " ".join(page_of(scored).text.split())
    pooled = metrics["pooled"]
    low = pooled["ci95"]["macro_f1"][0]
    assert f"macro-F1 {pooled['macro_f1']:.3f} on validation images 95 % interval {low:.3f} to" in text
    for name, scores in metrics["domains"].items():
        low, high = scores["ci95"]["macro_f1"]
        row = f"{scores['macro_f1']:.3f} {low:.3f} to {high:.3f} {scores['accuracy']:.3f} {scores['classes']}"
        assert f"{name} {row} {scores['images']} " in text
    for name, score in pooled["per_class"].items():
        assert f"{name} {score['f1']:.3f}" in text
    assert metrics["data"]["fingerprint"] in text


def test_a_report_says_how_each_scale_is_known(scored):
    page = " ".join(write_report([scored]).read_text(encoding="utf-8").split())
    for name, domain in read_metrics(scored)["data"]["domains"].items():
        assert f"<td>{domain['um_per_pixel']:g} (known archive)</td>" in page, name


def test_a_report_on_the_same_files_is_the_same(scored):
    first = write_report(scored).read_bytes()
    assert write_report(scored).read_bytes() == first


def test_a_report_before_an_evaluation_is_refused(run):
    with pytest.raises(HemafastError, match="hemafast evaluate"):
        write_report(run)
    assert not (run / "report.html").exists()


def test_names_of_domains_and_classes_cannot_break_the_page(hostile):
    page = page_of(hostile)
    assert page.tags.count("script") == 2  # the cells and the code, both the page's own
    assert page.handlers == []
    assert all(address.startswith("data:image/jpeg") for address in page.pictures)
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
    assert "Training" not in page.text
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


def test_the_curves_are_those_of_the_log_phase_by_phase_with_gaps_where_nothing_was_measured():
    rows = [
        {"epoch": 1, "phase": "train", "loss": 4.0, "f1_macro": 0.1, "lr": 0.5},
        {"epoch": 2, "phase": "train", "loss": 3.0, "f1_macro": 0.2},
        {"epoch": 2, "phase": "val", "loss": 5.0, "f1_macro": 0.3, "f1_macro_Matek_19": 0.4},
    ]
    drawn = [
        {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in figure.axes[0].lines}
        for figure in curve_figures(rows)
    ]
    assert drawn[0] == {"training": ([1, 2], [4.0, 3.0]), "validation": ([2], [5.0])}
    assert drawn[1] == {"training": ([1, 2], [0.1, 0.2]), "validation": ([2], [0.3]), "Matek_19": ([2], [0.4])}
    ((epochs, rates),) = drawn[2].values()
    assert epochs == [1, 2]
    assert np.array_equal(rates, [0.5, np.nan], equal_nan=True)


def test_a_plot_has_no_ground_of_its_own_so_that_the_shadow_of_a_wide_one_is_seen():
    figure, (axis, other) = subplots(2, width=2, height=2, columns=2)
    axis.plot([0, 1], [0, 1])
    other.set_facecolor("#dddddd")  # meant
    drawn = on_page(figure, "a plot")
    assert "var(--paper)" not in drawn
    assert "#dddddd" in drawn


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_axes_count_whole_epochs(epochs):
    measured = {"loss": 1.0, "f1_macro": 0.5, "lr": 0.1, "seconds": 2.0}
    rows = [measured | {"epoch": 1 + epoch, "phase": phase} for epoch in range(epochs) for phase in ("train", "val")]
    for figure in [*curve_figures(rows), validation_figures({"run": rows})[0]]:
        low, high = figure.axes[0].get_xlim()
        shown = [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high]
        assert shown
        assert all(float(tick).is_integer() for tick in shown)


def test_a_domain_whose_name_reads_like_a_formula_is_in_the_legend_of_the_curves():
    row = {"epoch": 1, "phase": "val", "loss": 5.0, "f1_macro": 0.3, "f1_macro_$\\frac{$": 0.4, "f1_macro__b": 0.5}
    _, scores = curve_figures([row])  # and no figure of rates, as there are none
    labels = [text.get_text() for text in scores.axes[0].get_legend().get_texts()]
    assert labels == ["training", "validation", "\\$\\frac{\\$", "b"]
    assert ">$\\frac{$<" in on_page(scores, "scores")


@pytest.mark.parametrize("name", ["größe", "a $ b", "<b>&amp;", "", "$\\frac$"])
def test_any_name_of_a_class_can_be_drawn(name):
    stream = io.BytesIO()
    save(confusion_figure({name: np.array([[2, 1], [0, 3]])}, [name, "other"]), stream)
    with Image.open(stream) as picture:
        picture.verify()


def test_reliability_and_validation_can_be_drawn_of_anything():
    empty = {"reliability": [], "ece": None}
    point = {"confidence": 0.5, "accuracy": 1.0, "ci95": [0.2, 1.0], "images": 1}
    figures = reliability_figures({"before": empty, "after": {"reliability": [point], "ece": 0.5}})
    rows = [{"epoch": 1, "phase": phase, "f1_macro": 0.5, "seconds": 1.0} for phase in ("train", "val")]
    figures += validation_figures({"_$a$": [], "b": rows, "stopped": rows[:1]})
    assert len(figures) == 4
    assert all(ElementTree.fromstring(on_page(figure, 'a "plot" & more')) is not None for figure in figures)


def test_several_runs_are_compared_with_a_paired_interval(scored, run, tmp_path):
    evaluate_run(run)
    page = Page(write_report([scored, run], tmp_path / "both.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "2 runs, side by side" in text
    assert "macro-F1 above the first run +0.000 0.000 to 0.000" in text  # the same model twice
    assert page.is_alone


def test_a_difference_is_that_of_the_scores_and_pairs_images_whatever_their_order(scored, run):
    evaluate_run(run)
    file = run / "predictions.csv"
    table = pd.read_csv(file)
    table["predicted"] = table["label"]  # a run without mistakes
    table.iloc[::-1].to_csv(file, index=False)
    found = difference(scored, run)
    assert found["macro_f1"] == pytest.approx(1 - read_metrics(scored)["pooled"]["macro_f1"])
    assert found["ci95"][0] <= found["macro_f1"] <= found["ci95"][1]


def test_a_difference_counts_what_one_run_alone_has_right(scored, run):
    evaluate_run(run)
    file = run / "predictions.csv"
    table = pd.read_csv(file)
    wrong = int((table["predicted"] != table["label"]).sum())
    table["predicted"] = table["label"]
    table.to_csv(file, index=False)
    found = difference(scored, run)
    assert (found["only_first"], found["only_other"]) == (0, wrong)
    assert found["mcnemar"] == pytest.approx(min(1.0, 2 * 0.5**wrong))
    assert difference(scored, scored)["mcnemar"] == 1.0


def test_runs_on_other_images_are_not_subtracted(scored, run):
    evaluate_run(run)
    file = run / "predictions.csv"
    pd.read_csv(file).iloc[1:].to_csv(file, index=False)
    assert difference(scored, run) is None


def test_a_run_that_is_named_twice_or_a_page_without_a_place_is_refused(scored, tmp_path):
    with pytest.raises(HemafastError, match="twice"):
        write_report([scored, scored], tmp_path / "page.html")
    with pytest.raises(HemafastError, match="--output"):
        write_report([scored, scored.parent / "other"])


def test_a_page_that_cannot_be_written_is_refused(scored, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(HemafastError, match="cannot be written"):
        write_report(scored, tmp_path / "file" / "page.html")


def test_the_command_writes_where_it_says(scored, tmp_path):
    done = hemafast("report", scored, "--output", tmp_path / "page.html", "--thumbnails", 2, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["bytes"] == (tmp_path / "page.html").stat().st_size
    assert "Pictures: 2 of" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_where_answers_were_read_from_is_shown_when_asked(scored, tmp_path):
    pytest.importorskip("pytorch_grad_cam", reason="grad-cam is not installed")
    page = Page(write_report(scored, tmp_path / "page.html", explain=True).read_text(encoding="utf-8"))
    assert "by Grad-CAM" in page.text
    assert page.tags.count("img") > page_of(scored).tags.count("img")
