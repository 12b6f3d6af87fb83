"""A run with a tree of classes: where the tree comes from, where it stays, and what it changes."""

import pytest
import torch

from hemafast.engine.build import build_run
from hemafast.engine.checkpoint import read_card
from hemafast.engine.distributed import World
from hemafast.engine.journal import read_rows
from hemafast.engine.plan import settle
from hemafast.engine.trainer import resume, train
from hemafast.errors import HemafastError, StoppedError
from hemafast.evaluate.evaluate import evaluate_run
from hemafast.lineage import packaged_lineage, read_lineage
from hemafast.objective import CrossEntropy, LineageLoss
from hemafast.report.page import write_report
from hemafast.run_folder import BEST
from hemafast.taxonomy import CHALLENGE_CLASSES

OTHERS = [name for name in CHALLENGE_CLASSES if name not in ("monocyte", "basophil", "eosinophil")]


@pytest.fixture
def tree(tmp_path):
    """A file with a tree that only these tests have."""
    file = tmp_path / "tree.toml"
    named = ", ".join(f'"{name}"' for name in OTHERS)
    file.write_text(
        'stages = ["monocyte", "basophil"]\nblast = "eosinophil"\n'
        f'[lineages]\nmine = ["basophil", "monocyte", "eosinophil"]\nrest = [{named}]\n'
    )
    return file


def test_without_the_options_the_loss_is_as_ever(settings):
    run = build_run(settle(settings(), World()), World())
    assert type(run.learner.loss) is CrossEntropy
    assert run.model_card().lineage == packaged_lineage()


def test_the_options_reach_the_loss_of_training_and_of_validation(settings, tree):
    config = settings(lineage=tree, lineage_weight=0.3, stage_temperature=0.5, loss="weighted")
    loss = build_run(settle(config, World()), World()).learner.loss
    assert isinstance(loss, LineageLoss)
    assert (loss.strength, loss.base.weight is not None) == (0.3, True)
    assert loss.belongs.sum(dim=0).tolist() == [3, len(OTHERS)]
    monocyte, basophil = (CHALLENGE_CLASSES.index(name) for name in ("monocyte", "basophil"))
    assert loss.targets[monocyte, basophil] > 0


def test_a_run_keeps_its_tree_when_the_file_is_gone(settings, tree, signal_at):
    config, given = settings(lineage=tree, lineage_weight=0.3, epochs=2), read_lineage(tree)
    with signal_at(8), pytest.raises(StoppedError):
        train(config)
    (folder,) = config.output.iterdir()
    tree.unlink()
    assert resume(folder) == folder
    assert [row["epoch"] for row in read_rows(folder)] == [1, 1, 2, 2]
    assert read_card(folder / BEST).lineage == given
    scores = evaluate_run(folder)["pooled"]
    assert scores["lineage"]["names"] == ["mine", "rest"]
    assert scores["maturation"]["stages"] == ["monocyte", "basophil"]
    assert scores["blast"]["class"] == "eosinophil"
    page = write_report(folder).read_text(encoding="utf-8")
    assert "from\nmonocyte to basophil" in page
    assert "eosinophil against the rest" in page
    assert "most at a specificity of 95 %" in page


def test_a_tree_that_does_not_fit_is_refused_before_trials_and_before_anything_is_written(settings, tree, monkeypatch):
    monkeypatch.setattr("hemafast.engine.plan.decide", lambda config, *_: pytest.fail("a trial was made"))
    tree.write_text('[lineages]\nmine = ["monocyte", "basofil"]')
    config = settings(lineage=tree)
    with pytest.raises(HemafastError, match=r"Only in the data: basophil, .* Only in the tree: basofil"):
        train(config)
    assert not any(config.output.iterdir())


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"stage_temperature": 0.5}, "stage_temperature = 0.5 has no effect: .* of 0 stages in"),
        ({"lineage_weight": 0.3}, "lineage_weight = 0.3 has no effect: .* of 1 lineage in"),
    ],
)
def test_a_tree_with_which_the_loss_stays_as_it_is_is_refused(settings, tree, asked, said):
    named = ", ".join(f'"{name}"' for name in CHALLENGE_CLASSES)
    tree.write_text(f"[lineages]\nall = [{named}]")
    config = settings(lineage=tree, **asked)
    with pytest.raises(HemafastError, match=said):
        train(config)
    assert not any(config.output.iterdir())
    assert settle(settings(lineage=tree), World()).lineage == read_lineage(tree)  # scores take any tree


def test_a_checkpoint_with_something_else_for_a_tree_is_refused(settings):
    config = settings()
    state = build_run(settle(config, World()), World()).state_dict()
    with pytest.raises(HemafastError, match="The checkpoint holds no tree"):
        settle(config, World(), state | {"lineage": {"lineages": 3}})
    with pytest.raises(HemafastError, match="a tree without basophil"):
        settle(config, World(), state | {"lineage": {"lineages": {"one": ["cat"]}}})
    assert settle(config, World(), state | {"lineage": None}).lineage == packaged_lineage()


def test_the_term_changes_what_is_learned(settings):
    weights = []
    for weight in (0.0, 1.0):
        folder = train(settings(lineage_weight=weight, epochs=1))
        state = torch.load(folder / "last_model.ckpt", weights_only=True)["model"]
        weights.append(torch.cat([tensor.flatten().float() for tensor in state.values()]))
    assert not torch.equal(*weights)
