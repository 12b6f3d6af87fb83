"""What names of classes mean, and what an unknown one is answered with."""

import pytest

from hemafast.errors import HemafastError
from hemafast.preparation.class_names import UnknownClassesError, is_known, rename, suggestion_for

MEANT = {
    "basophil": ["BASO", "Basophils", "01_basophil", "3-basophil", "basophil (ABC)", "BASO-1", "WBC_basophil_2",
                 "basofil", "Basófilo", "Basophiler Granulozyt", "Базофилы", "嗜碱性粒细胞", "好塩基球"],
    "neutrophil_segmented": ["Neutrophils_Segmented", "neutrophil, segmented", "SegmentedNeutrophil", "Netrophil",
                             "Segmentkernige", "Neutrófilos", "Polynucléaire neutrophile", "中性粒细胞"],
    "neutrophil_banded": ["Neutrophil-Band", "band cells", "Stabkernige", "палочкоядерный нейтрофил"],
    "lymphocyte_typical": ["Lymphocyte", "Lymphocytes_normal", "Lymphozyten", "linfocyte", "Linfociti"],
    "promyelocyte": ["pro-myelocyte", "Promyelocytes", "early promyelocyte"],
    "": ["Platelets", "Lymphocyte - reactive", "Lymphocyte Variant", "Unknown", "not_sure", "others", "Background",
         "debris"],
}  # fmt: skip
NOT_MEANT = ["bar", "baz", "good", "foo", "my data", "meta data", "images", "class_0", "blood", "LabA", "normal", "ALL",
             "immature neutrophil", "basophil;eosinophil", "non-basophil", "12", ""]  # fmt: skip


@pytest.mark.parametrize(("name", "meant"), [(name, meant) for meant, names in MEANT.items() for name in names])
def test_a_name_is_understood_in_many_spellings_and_languages(name, meant):
    assert suggestion_for(name) == meant


@pytest.mark.parametrize("name", NOT_MEANT)
def test_nothing_far_fetched_is_suggested(name):
    assert suggestion_for(name) is None


@pytest.mark.parametrize("name", ["other", "Unknown", "01_basophil", "debris"])
def test_words_that_may_name_any_folder_are_no_sign_of_classes(name):
    assert not is_known(name)


def _refused(labels, given=None) -> UnknownClassesError:
    with pytest.raises(UnknownClassesError) as caught:
        rename(labels, given or {}, "challenge")
    return caught.value


def test_unknown_numbers_are_named_in_their_order():
    assert _refused([str(number) for number in range(12)]).unknown == [str(number) for number in range(12)]


def test_a_map_to_no_class_is_named_and_mended():
    error = _refused(["A", "monocyte"], {"A": "basofile"})
    assert "A (1 image, basofile in the class map, probably basophil)" in error.problem
    assert error.suggested == {"A": "basophil"}


def test_what_would_leave_out_every_class_is_not_suggested():
    assert _refused(["good", "bad"]).suggested is None
    assert _refused(["monocyte", "bad"]).suggested == {"bad": ""}


def test_a_number_is_the_same_with_zeros_before_it():
    renamed, notes = rename(["00", "01", "2"], {"0": "basophil", "1": "monocyte", "02": "eosinophil"}, "challenge")
    assert renamed == {"00": "basophil", "01": "monocyte", "2": "eosinophil"}
    assert notes == []


def test_names_that_the_map_writes_in_two_ways_may_not_contradict():
    from hemafast.preparation.lists import read_class_map

    with pytest.raises(HemafastError, match="a1 becomes both basophil and monocyte"):
        read_class_map({"A1": "basophil", "a1": "monocyte"})
