"""Whether the cells of a data set appear as large as those that a model was trained on."""

from __future__ import annotations

import shlex

from hemafast.engine.checkpoint import View
from hemafast.preparation.schema import DatasetInfo, field_of_view_of


def scale_warnings(view: View, info: DatasetInfo) -> list[str]:
    """Why cells of a data set may appear larger, smaller or less sharp than in training.

    Args:
        view: what the model sees of an image.
        info: the data set, which is not that of training.

    Returns:
        One sentence for all domains, or one for each domain that differs; none if nothing differs.
    """
    shown = field_of_view_of(info)
    if shown != view.field_of_view:
        return [
            f"Images are prepared to show {_part(shown)}, those of training showed {_part(view.field_of_view)}: cells "
            f"appear larger or smaller. Prepare them with --field-of-view {_option(view.field_of_view)}"
        ]
    if shown is None:
        return []
    found = {name: _of_domain(name, domain.um_per_pixel, view) for name, domain in info.domains.items()}
    return [f"{name}: {said}" for name, said in found.items() if said]


def _of_domain(name: str, scale: float | None, view: View) -> str:
    """What differs in a domain of this scale; empty if nothing does."""
    option = f"--um-per-pixel {shlex.quote(name)}"
    if scale is None:
        whole = not view.scales or view.um_per_pixel.get(name, 0) is None  # as it was in training
        said = f"um/px unknown, images are seen whole, unlike in training; prepare with {option}=NUMBER"
        return "" if whole else said
    if not view.scales:
        return f"images are cut by their scale, those of training were seen whole; prepare with {option}=unknown"
    far = view.far_from_training(scale)
    return far and f"{scale:.3g} um/px; {far}"


def _part(field_of_view: float | None) -> str:
    return "whole images" if field_of_view is None else f"their central {field_of_view:g} um"


def _option(field_of_view: float | None) -> str:
    return "whole" if field_of_view is None else f"{field_of_view:g}"
