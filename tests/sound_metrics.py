"""The content of a metrics.json, whole, as `evaluate` would write it of two classes."""

from typing import Any

CLASSES = ["monocyte", "myeloblast"]
_SCORES = (
    *("accuracy", "balanced_accuracy", "macro_f1", "weighted_f1", "matthews", "kappa"),
    *("top2_accuracy", "log_loss", "ece", "auroc"),
)


def scores(macro_f1: float, *, images: int = 100, classes: int = 2) -> dict[str, Any]:
    """The scores of one domain; the interval of macro-F1 is 0.1 to both sides."""
    ends = {key: [0.1, 0.2] for key in _SCORES} | {"macro_f1": [macro_f1 - 0.1, macro_f1 + 0.1]}
    bins = [{"confidence": 0.6, "accuracy": 0.5, "ci95": [0.4, 0.6], "images": 50}]
    sure = {"log_loss": 0.5, "ece": 0.1, "ci95": {name: [0.1, 0.2] for name in ("log_loss", "ece")}}
    of_class = {"images": 50, "precision": 0.5, "recall": 0.5, "f1": 0.5, "auroc": None}
    of_class["ci95"] = {name: [0.4, 0.6] for name in ("precision", "recall", "f1")}
    return {
        **dict.fromkeys(_SCORES, 0.5),
        "macro_f1": macro_f1,
        "ci95": ends,
        "images": images,
        "classes": classes,
        "absent": [],
        "per_class": dict.fromkeys(CLASSES, of_class),
        "confusion": [[25, 25], [25, 25]],
        "lineage": None,
        "maturation": None,
        "calibrated": {"images": 50, **{when: {**sure, "reliability": bins} for when in ("before", "after")}},
        "selective": None,
        "blast": None,
        "sets": None,
    }


def metrics(domains: dict[str, float], trained: list[str], *, fingerprint: str = "home") -> dict[str, Any]:
    """A whole metrics.json of domains with these macro-F1, by a model that was trained on the domains `trained`."""
    domain = {"um_per_pixel": 0.1, "drawn": False, "images": 100, "quarantined": 0}
    return {
        "schema": 2,
        "split": "val",
        "warnings": [],
        "classes": CLASSES,
        "folding": {"class_map": {}, "compared": CLASSES, "merged": {}, "left_out": {}, "model_only": []},
        "pooled": scores(0.5, images=300),
        "domains": {name: scores(value) for name, value in domains.items()},
        "likeness": None,
        "model": {
            "backbone": "test_resnet",
            "classes": CLASSES,
            "domains": trained,
            "epoch": 3,
            "started_from": "elsewhere",
            "data_fingerprint": "home",
            "calibration": {"temperature": 1.0, "images": 50, "target": 0.95, "set_thresholds": None},
        },
        "data": {
            "folder": "prepared",
            "fingerprint": fingerprint,
            "drawn": False,
            "split_seed": 42,
            "val_fraction": 0.2,
            "counts": {},
            "grouped": [],
            "prepared_by": {},
            "domains": dict.fromkeys(domains, domain),
        },
        "training": {
            "preset": "baseline",
            "seed": 1,
            "epochs": 3,
            "total_seconds": 9.0,
            "train_images_per_second": 30.0,
        },
    }
