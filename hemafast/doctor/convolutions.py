"""Whether this processor computes the gradients of a network's convolutions right in channels_last."""

from __future__ import annotations

from hemafast.doctor.finding import Finding, green, yellow
from hemafast.engine.layout import SECONDS, Comparison, compare, convolutions_of, distinct_of
from hemafast.engine.machine import Machine
from hemafast.errors import name_some
from hemafast.model import build_model


def compare_convolutions(model: str, image_size: int, machine: Machine) -> Finding:
    """Compare the convolutions of a network in both layouts, as training does before its first run of that network.

    Raises HemafastError if timm has no such model or cannot build it for this size.
    """
    if machine.device != "cpu":
        return green("convolutions", "not compared: cuDNN computes them")
    distinct = distinct_of(convolutions_of(build_model(model, 2, image_size), [image_size]))
    return check_convolutions(f"{len(distinct)} of {model} at {image_size} px", compare(distinct, machine.precision))


def check_convolutions(which: str, compared: Comparison) -> Finding:
    """Whether all have the same gradients in channels_last as in the contiguous layout."""
    if compared.wrong:
        wrong = f"{len(compared.wrong)} with wrong gradients in channels_last"
        remedy = "None is needed: training runs these in the contiguous layout. Report it to oneDNN."
        return yellow(
            "convolutions", f"{which}: {wrong} ({name_some(sorted(map(str, compared.wrong)), 3, '; ')})", remedy
        )
    if compared.left:
        found = f"{which}: {compared.left} were not compared in {SECONDS:.0f} s ({compared.why}), the others are right"
        return yellow("convolutions", found, "Run doctor again when the machine is less busy.")
    return green("convolutions", f"{which}: the same gradients in both layouts")
