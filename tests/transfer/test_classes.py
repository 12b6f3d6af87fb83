"""What labels mean: the model's own classes, other names for them, and classes that it lacks."""

import pytest

from hemafast.errors import HemafastError
from hemafast.transfer.classes import place_labels

CLASSES = ("basophil", "monocyte", "neutrophil_segmented")


def test_names_of_the_models_classes_are_found_in_any_case():
    places, new = place_labels(["Monocyte", "", "BASOPHIL"], CLASSES, {})
    assert places.tolist() == [1, -1, 0]
    assert new == ()


def test_a_class_map_renames_and_leaves_out():
    places, _ = place_labels(["N", "x", "monocyte"], CLASSES, {"N": "neutrophil_segmented", "X": ""})
    assert places.tolist() == [2, -1, 1]


def test_a_class_that_the_model_lacks_needs_five_labels():
    places, new = place_labels(["giant platelet"] * 5 + ["monocyte"], CLASSES, {})
    assert new == ("giant platelet",)
    assert places.tolist() == [3] * 5 + [1]
    with pytest.raises(HemafastError, match=r"giant platelet has 4 labels .* needs 5.*--class-map"):
        place_labels(["giant platelet"] * 4 + ["monocyte"], CLASSES, {})


def test_a_name_that_probably_means_a_class_of_the_model_is_asked_for():
    labels = ["Monocytes"] * 6 + ["basophil"]
    with pytest.raises(HemafastError, match="--class-map 'Monocytes=monocyte'") as caught:
        place_labels(labels, CLASSES, {})
    assert "--class-map 'Monocytes=Monocytes'" in caught.value.remedy
    assert place_labels(labels, CLASSES, {"Monocytes": "Monocytes"})[1] == ("Monocytes",)


@pytest.mark.parametrize(
    ("name", "classes", "meant"),
    [
        ("ig", ("monocyte", "myelocyte", "promyelocyte"), ""),  # covers two classes of the model
        ("ig", ("monocyte", "myelocyte"), "myelocyte"),
        ("neutrophil_banded", ("monocyte", "Neutrophil"), "Neutrophil"),  # the model is the coarser one
    ],
)
def test_a_coarser_or_finer_name_becomes_no_new_class_in_silence(name, classes, meant):
    with pytest.raises(HemafastError, match=f"--class-map '{name}={meant}'"):
        place_labels([name] * 6 + ["monocyte"], classes, {})


def test_labels_of_one_class_alone_are_refused():
    with pytest.raises(HemafastError, match=r"All labels \(3\) are monocyte"):
        place_labels(["monocyte", "", "Monocyte", "MONOCYTE"], CLASSES, {})


@pytest.mark.parametrize("labels", [["", ""], ["x", "x"]])
def test_no_label_at_all_is_an_error(labels):
    with pytest.raises(HemafastError, match="None of 2 images has a label"):
        place_labels(labels, CLASSES, {"x": ""})
