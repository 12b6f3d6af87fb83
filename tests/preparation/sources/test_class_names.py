"""Names of classes: spellings, the user's map, and what a stranger's names mean."""

import csv
from importlib.resources import files

import pytest

from hemafast.errors import HemafastError
from hemafast.preparation.sources.class_names import (
    UnknownClassesError,
    _stems,
    covered_by,
    is_known,
    rename,
    suggestion_for,
)
from hemafast.preparation.sources.names import fold
from hemafast.preparation.tables.lists import read_class_map
from hemafast.taxonomy import CHALLENGE_CLASSES

SYNONYMS = list(
    csv.DictReader(
        files("hemafast.preparation.sources").joinpath("class_synonyms.csv").read_text(encoding="utf-8").splitlines()
    )
)


def test_synonyms_are_listed_once_and_mean_classes_of_the_challenge_or_none():
    assert len({fold(row["name"]) for row in SYNONYMS}) == len(SYNONYMS)
    assert {row["class"] for row in SYNONYMS} <= {*CHALLENGE_CLASSES, ""}
    assert not {fold(row["name"]) for row in SYNONYMS} & {fold(name) for name in CHALLENGE_CLASSES}
    assert all(row["where"] for row in SYNONYMS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((name, name) for name in CHALLENGE_CLASSES),
        ("EOSINOPHIL", "eosinophil"),
        ("Eosinophils", "eosinophil"),
        ("Neutrophil", "neutrophil_segmented"),
        ("neutrophil_segment", "neutrophil_segmented"),
        ("Band", "neutrophil_banded"),
        ("NGB", "neutrophil_banded"),
        ("lymphocyte", "lymphocyte_typical"),
        ("Lymphocyte cells", "lymphocyte_typical"),
        ("myeloblasts", "myeloblast"),
        ("EBO", "erythroblast"),
        ("ig", ""),
        ("platelet", ""),
        ("Smudge Cell", ""),
        ("photos", None),
        ("Patient 3", None),
        ("2021-04-01", None),
        ("", None),
    ],
)
def test_the_meaning_of_names_of_the_field(name, meant):
    assert suggestion_for(name) == meant
    assert is_known(name) is (meant is not None)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("basophill", "basophil"), ("neutrofill", "neutrophil_segmented"), ("monocytt", "monocyte"), ("xyz", None)],
)
def test_typos_are_guessed_for_suggestions_but_are_no_class(name, meant):
    assert suggestion_for(name) == meant
    assert not is_known(name)


def test_spellings_of_one_class_merge_and_a_note_says_so():
    labels = ["basophil", "Basophil", "BASOPHIL ", "neutrophil segmented"]
    renamed, notes = rename(labels, {}, "challenge")
    assert renamed == dict.fromkeys(labels[:3], "basophil") | {"neutrophil segmented": "neutrophil_segmented"}
    (note,) = notes
    assert all(f"{label} is {renamed[label]}" in note for label in labels[1:])
    assert "basophil is basophil" not in note


def test_from_the_data_the_most_frequent_spelling_stays():
    labels = ["Blue", "blue", "blue", "gr\u00fcn", "gru\u0308n", "Red"]
    renamed, notes = rename(labels, {}, "from-data")
    assert renamed == {
        "Blue": "blue",
        "blue": "blue",
        "gr\u00fcn": "gru\u0308n",
        "gru\u0308n": "gru\u0308n",
        "Red": "Red",
    }
    assert len(notes) == 1


def test_the_map_goes_first_and_fits_any_spelling():
    renamed, notes = rename(["ig", "Blast", "basophil"], {"IG": "", "blast": "myeloblast"}, "challenge")
    assert renamed == {"ig": "", "Blast": "myeloblast", "basophil": "basophil"}
    assert notes == []


def test_the_map_may_merge_classes_and_name_what_is_not_there():
    renamed, notes = rename(["a", "b"], {"a": "x", "b": "X", "c": "x"}, "from-data")
    assert len(set(renamed.values())) == 1
    assert "the class map names c, which is no class here" in notes


def test_unknown_names_are_refused_with_what_they_probably_mean():
    labels = ["basophil"] * 3 + ["neutrophil"] * 2 + ["platelet"]
    with pytest.raises(UnknownClassesError) as caught:
        rename(labels, {}, "challenge")
    assert "2 of 3 classes are not among the 11 of the challenge" in caught.value.problem
    assert "platelet (1 image, of no class there)" in caught.value.problem
    assert "neutrophil (2 images, probably neutrophil_segmented)" in caught.value.problem
    assert caught.value.suggested == {"platelet": "", "neutrophil": "neutrophil_segmented"}
    again, _ = rename(labels, caught.value.suggested, "challenge")
    assert again == {"basophil": "basophil", "neutrophil": "neutrophil_segmented", "platelet": ""}


def test_an_unknown_name_is_asked_for_and_a_coarse_one_kept_so_that_neither_is_left_out():
    with pytest.raises(UnknownClassesError) as caught:
        rename(["basophil", "monocyte", "MYE", "IG"], {}, "challenge")
    assert caught.value.suggested == {"MYE": "CLASS", "IG": "IG"}
    assert "IG (1 image, covers metamyelocyte and myelocyte and promyelocyte)" in caught.value.problem


def test_what_was_mapped_stays_in_the_suggestion():
    with pytest.raises(UnknownClassesError) as caught:
        rename(["x", "neutrophil"], {"x": "basophil"}, "challenge")
    assert caught.value.suggested == {"x": "basophil", "neutrophil": "neutrophil_segmented"}


def test_another_list_of_classes_has_no_suggestion():
    with pytest.raises(UnknownClassesError) as caught:
        rename(["hem", "xyz", "basophil"], {}, "challenge")
    assert caught.value.suggested is None


def test_a_map_to_a_class_that_the_challenge_lacks_is_refused():
    with pytest.raises(HemafastError, match="ig"):
        rename(["ig"], {"ig": "granulocyte"}, "challenge")


def test_many_unknown_names_are_cut_short():
    with pytest.raises(HemafastError, match="and 18 more"):
        rename([f"xyz{number}" for number in range(30)], {}, "challenge")


# Spellings, languages, and what is not meant

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


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("Stab neutrophil", "neutrophil_banded"),
        ("NEUT_BAND", "neutrophil_banded"),
        ("SEG_NEUT", "neutrophil_segmented"),
        ("Neutrofilos_banda", "neutrophil_banded"),
        ("Neutrófilos bastonetes", "neutrophil_banded"),
        ("neutrophil granulocytes", "neutrophil_segmented"),
        ("monocyte lymphocyte", None),
    ],
)
def test_words_that_are_known_apart_mean_together_what_both_cover(name, meant):
    assert suggestion_for(name) == meant


@pytest.mark.parametrize(
    "name",
    ["Linfocitos atípicos", "Linfócitos reativos", "Lymphocytes réactionnels", "Atypische Lymphozyten",
     "atypical lymphocytes (ABC)"],
)  # fmt: skip
def test_an_atypical_cell_is_no_typical_one_in_any_language(name):
    assert suggestion_for(name) == ""


@pytest.mark.parametrize(
    "name",
    ["Blast cell", "Lymphozyten", "Segmentkernige", "Basofili", "Neutrófilos segmentados", "Erythroblasten", "Bandas"],
)
def test_plurals_of_several_languages_are_signs_of_class_folders(name):
    assert is_known(name)


def test_plural_forms_join_no_names_of_different_meaning():
    meanings: dict[str, set[str]] = {}
    for row in SYNONYMS:
        meanings.setdefault(_stems(row["name"]), set()).add(f"{row['class']}: {row['covers']}")
    assert max(map(len, meanings.values())) == 1


@pytest.mark.parametrize(
    ("name", "number"),
    [("Granulocytes", 7), ("Granulozyten", 7), ("Mononuclear cells", 2), ("Granulocitos inmaduros", 3),
     ("Immature Granulocytes (Myelocytes, Metamyelocytes and Promyelocytes)", 3), ("Neutrofili", 2), ("Monocytes", 1)],
)  # fmt: skip
def test_a_coarse_name_covers_several_classes(name, number):
    assert len(covered_by(name)) == number


def _refused(labels, given=None) -> UnknownClassesError:
    with pytest.raises(UnknownClassesError) as caught:
        rename(labels, given or {}, "challenge")
    return caught.value


def test_unknown_numbers_are_named_in_their_order():
    assert list(_refused([str(number) for number in range(12)]).meanings) == [str(number) for number in range(12)]


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
    with pytest.raises(HemafastError, match="a1 becomes both basophil and monocyte"):
        read_class_map({"A1": "basophil", "a1": "monocyte"})
