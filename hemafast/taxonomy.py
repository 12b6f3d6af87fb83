"""The cells and the archives this engine knows by name: the challenge's eleven classes and its two domains."""

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
"""The same classes in the order of a submission's LabelID, which counts from 0: the label map of the starter code, as
one of the winners published it (github.com/MIC-DKFZ/help_a_hematologist_out_challenge, datasets/hematology_data.py)."""

UM_PER_PIXEL = {"Acevedo_20": 0.100, "Matek_19": 0.0725}
"""Side of one pixel in micrometres, by domain (360 px of Acevedo_20 and 400 px of Matek_19 span 36 and 29 um)."""

LINEAGES = {
    "granulocytic": (
        "myeloblast",
        "promyelocyte",
        "myelocyte",
        "metamyelocyte",
        "neutrophil_banded",
        "neutrophil_segmented",
    ),
    "eosinophilic": ("eosinophil",),
    "basophilic": ("basophil",),
    "monocytic": ("monocyte",),
    "lymphoid": ("lymphocyte_typical",),
    "erythroid": ("erythroblast",),
}
"""Which of the challenge's classes descend from one precursor. A myeloblast counts to the granulocytes it becomes."""

MATURATION = ("promyelocyte", "myelocyte", "metamyelocyte", "neutrophil_banded", "neutrophil_segmented")
"""The stages of a neutrophil from the youngest on: neighbours differ by degrees, and experts disagree on them."""

BLAST = "myeloblast"
"""The class whose presence in blood is the alarm."""
