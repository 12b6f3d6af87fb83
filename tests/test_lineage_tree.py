"""The tree of classes: the file of the package, those of users, and what is made of them."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hemafast.errors import HemafastError
from hemafast.lineage import PACKAGED, Lineage, fitting_lineage, packaged_lineage, read_lineage, soft_targets
from hemafast.taxonomy import CHALLENGE_CLASSES

TREE = Lineage({"one": ("a", "b", "c"), "two": ("d",), "unused": ("e",)}, stages=("c", "a", "b"), blast="d")


@pytest.fixture
def write(tmp_path):
    """`write(text)`: a file of a tree."""

    def make(text):
        file = tmp_path / "tree.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return make


def test_every_class_of_the_challenge_has_one_lineage():
    tree = packaged_lineage()
    assert sorted(label for labels in tree.lineages.values() for label in labels) == sorted(CHALLENGE_CLASSES)
    assert set(tree.stages) < set(tree.lineages["granulocytic"])
    assert tree.blast == "myeloblast"


def test_a_tree_of_a_user_is_read(write):
    file = write(
        'blast = "d"\nstages = ["c", "a", "b"]\n[lineages]\none = ["a", "b", "c"]\ntwo = ["d"]\nunused = ["e"]'
    )
    assert read_lineage(file) == TREE
    assert read_lineage(write('[lineages]\nall = ["x"]')) == Lineage({"all": ("x",)})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "lineages"),
        ("[lineages]", "lineages"),
        ("[lineages]\none = []", "lineages.one"),
        ('[lineages]\none = "a"', "lineages.one"),
        ("[lineages]\none = [1]", "lineages.one.0"),
        ('[lineages]\none = ["a"]\ntwo = ["b", "a"]', "a is in a lineage twice, or in two"),
        ('[lineages]\none = ["a", "a"]', "a is in a lineage twice, or in two"),
        ('blast = "z"\n[lineages]\none = ["a"]', "z is in no lineage"),
        ('stages = ["a", "z"]\n[lineages]\none = ["a"]', "not all of one lineage"),
        ('stages = ["a", "b"]\n[lineages]\none = ["a"]\ntwo = ["b"]', "not all of one lineage"),
        ('stages = ["a", "a"]\n[lineages]\none = ["a"]', "a class is there twice"),
        ('order = 1\n[lineages]\none = ["a"]', "order"),
        ("[lineages", "cannot|Expected|not a tree"),
    ],
)
def test_a_file_that_is_no_tree_is_refused_with_what_is_wrong(write, text, words):
    file = write(text)
    with pytest.raises(HemafastError, match=words) as refused:
        read_lineage(file)
    assert str(file) in refused.value.problem
    assert str(PACKAGED) in refused.value.remedy


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(HemafastError, match=re.escape(str(tmp_path / "none.toml"))):
        read_lineage(tmp_path / "none.toml")


def test_a_tree_that_does_not_fit_is_refused_with_the_difference(write):
    file = write('[lineages]\none = ["a", "b"]\ntwo = ["lymphocite"]')
    with pytest.raises(HemafastError) as refused:
        fitting_lineage(file, ("a", "b", "lymphocyte"), needed=False)
    assert "Only in the data: lymphocyte. Only in the tree: lymphocite." in refused.value.problem


def test_a_tree_may_know_more_classes_than_the_data(write):
    file = write('[lineages]\none = ["a", "b"]\ntwo = ["c"]')
    assert fitting_lineage(file, ("b", "a"), needed=True) == read_lineage(file)


def test_other_classes_need_a_tree_only_if_the_loss_does():
    assert fitting_lineage(None, ("cat", "dog"), needed=False) is None
    assert fitting_lineage(None, CHALLENGE_CLASSES, needed=False) == packaged_lineage()
    with pytest.raises(HemafastError, match="Only in the data: cat, dog") as refused:
        fitting_lineage(None, ("cat", "dog"), needed=True)
    assert "--lineage" in refused.value.remedy


def test_groups_are_the_lineages_that_the_classes_have_in_the_order_of_the_tree():
    names, groups = TREE.groups(("d", "b", "a"))
    assert names == ["one", "two"]
    assert groups.tolist() == [1, 0, 0]


def test_steps_do_not_depend_on_the_order_of_the_classes():
    np.testing.assert_array_equal(TREE.steps(("a", "b", "c", "d")), [[1, 2, 0, 2], [0, 1, 1, 2], [1, 0, 2, 2]])
    tree, turned = packaged_lineage(), CHALLENGE_CLASSES[::-1]
    np.testing.assert_array_equal(tree.steps(turned), tree.steps(CHALLENGE_CLASSES)[:, ::-1])
    assert Lineage({"all": ("x",)}).steps(("x",)).shape == (0, 1)


def test_soft_targets_are_the_formula_and_leave_other_classes_whole():
    classes = ("d", "a", "c", "b")
    found = soft_targets(TREE, classes, 0.5)
    shares = np.exp(-np.array([0, 1, 1]) / 0.5)  # of a, in the middle: a, c, b
    np.testing.assert_allclose(found[1], [0, *(shares / shares.sum())], rtol=1e-6)
    np.testing.assert_array_equal(found[0], [1, 0, 0, 0])
    assert not found[1:, 0].any()


def test_a_missing_stage_leaves_the_others_as_far_apart_as_they_are():
    found = soft_targets(packaged_lineage(), ("promyelocyte", "metamyelocyte", "monocyte"), 1.0)
    assert found[0, 1] / found[0, 0] == pytest.approx(np.exp(-2))


@given(temperature=st.floats(1e-3, 10), order=st.permutations(CHALLENGE_CLASSES))
def test_soft_targets_are_shares_with_the_true_class_first_and_farther_stages_never_ahead(temperature, order):
    tree = packaged_lineage()
    found = soft_targets(tree, order, temperature)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert found.argmax(axis=1).tolist() == [*range(len(order))]
    stages = [order.index(stage) for stage in tree.stages]
    assert (np.diff(found[stages[0], stages]) <= 0).all()


def test_a_low_temperature_makes_targets_whole():
    np.testing.assert_allclose(
        soft_targets(packaged_lineage(), CHALLENGE_CLASSES, 0.01), np.eye(len(CHALLENGE_CLASSES)), atol=1e-6
    )
