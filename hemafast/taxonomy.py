"""The eleven classes and two domains of the challenge. `lineage.toml` says how the classes are related."""

CHALLENGE_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "lymphocyte_typical",
    "metamyelocyte",
    "monocyte",
    "myeloblast",
    "myelocyte",
    "neutrophil_banded",
    "neutrophil_segmented",
    "promyelocyte",
)
"""Class folders of the Helmholtz HIDA challenge "Help a Hematologist Out", in label order."""

SUBMISSION_CLASSES = (
    "basophil",
    "eosinophil",
    "erythroblast",
    "myeloblast",
    "promyelocyte",
    "myelocyte",
    "metamyelocyte",
    "neutrophil_banded",
    "neutrophil_segmented",
    "monocyte",
    "lymphocyte_typical",
)
"""The same classes in the order of a submission's LabelID, which counts from 0. One of the winners published this label
map of the starter code (github.com/MIC-DKFZ/help_a_hematologist_out_challenge, datasets/hematology_data.py)."""

UM_PER_PIXEL = {"Acevedo_20": 0.100, "Matek_19": 0.0725}
"""Side of one pixel in micrometres, by domain: 360 px of Acevedo_20 span 36 um, 400 px of Matek_19 span 29 um."""

COUNTED_APART = ("erythroblast",)
"""Classes that are no leukocytes: a differential counts them per 100 leukocytes, and not among these."""

UNLABELLED = "unlabelled"
"""The class of images whose class nobody knows: they are pretrained on, and never scored."""
