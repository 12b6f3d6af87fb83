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

UM_PER_PIXEL = {"Acevedo_20": 0.100, "Matek_19": 0.0725}
"""Side of one pixel in micrometres, by domain (360 px of Acevedo_20 and 400 px of Matek_19 span 36 and 29 um)."""
