"""Cells of patients as a model would have called them."""

import numpy as np
import pandas as pd

from hemafast.patients.cells import Cells

CLASSES = ("eosinophil", "erythroblast", "monocyte", "myeloblast")


def cells_of(calls, **more):
    """Cells from `{patient: {class: count}}`, all sure and like those of training."""
    rows = [
        (patient, name) for patient, counts in calls.items() for name, count in counts.items() for _ in range(count)
    ]
    table = pd.DataFrame(
        {
            "image": [f"cells/{number}.png" for number in range(len(rows))],
            "patient": [patient for patient, _ in rows],
            "domain": "",
            "label": "",
            "error": "",
            "predicted": [name for _, name in rows],
            "confidence": 0.99,
            "likeness": np.resize(np.linspace(0.06, 0.98, 20), len(rows)),
        }
    )
    return Cells(table, CLASSES, "a test", **more)
