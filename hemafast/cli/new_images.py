"""What commands on new images share: how these are read, where the model runs, and how the result is printed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Annotated, Any, Literal

import typer

from hemafast import config
from hemafast.cli.common import Device, Json, Quiet, Verbose, listen, wide_console
from hemafast.cli.options import with_parameters
from hemafast.errors import HemafastError, StoppedError
from hemafast.progress import Progress

UmPerPixel = Annotated[
    str | None,
    typer.Option(
        metavar="UM|unknown",
        help="Micrometres per pixel of all images; unknown sees them whole.",
        show_default="that of the domain a folder or zip is named after, else estimated from its cells",
    ),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        metavar="BITS",
        help="Bits that the camera uses of images with more than 8, as 12.",
        show_default="the range of training, or of the images given",
    ),
]
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "um_per_pixel": (UmPerPixel, None),
    "bit_depth": (BitDepth, None),
    "device": (Device, "auto"),
    "as_json": (Json, False),
    "verbose": (Verbose, False),
    "quiet": (Quiet, False),
}
"""Annotation and default of each option."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The values of these options."""

    um_per_pixel: float | Literal["unknown"] | None
    bit_depth: int | None
    device: config.Device
    as_json: bool
    progress: Progress

    def tell(self, plain: Any, lines: Iterable[str]) -> None:
        """Print a result: as JSON if that is asked for, else in lines."""
        if self.as_json:
            typer.echo(json.dumps(plain, indent=2, default=str))
            return
        results = wide_console()
        for line in lines:
            results.print(line, soft_wrap=True)


def takes_images(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command these options, behind its own; it takes them as `Taken`, its last argument."""

    @wraps(command)
    def run(
        *asked: Any,
        um_per_pixel: str | None,
        bit_depth: int | None,
        device: config.Device,
        as_json: bool,
        verbose: bool,
        quiet: bool,
        **own: Any,
    ) -> None:
        progress = listen(verbose=verbose, quiet=quiet or as_json)
        command(*asked, **own, taken=Taken(_scale_of(um_per_pixel), bit_depth, device, as_json, progress))

    own = [one for one in inspect.signature(command, eval_str=True).parameters.values() if one.name != "taken"]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _OPTIONS.items()
    ]
    return with_parameters(run, [*own, *shared])


@contextmanager
def whole_or_nothing() -> Iterator[None]:
    """Turn an interruption within the block, which must have written nothing, into StoppedError."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise StoppedError("Stopped; nothing was written.", "Run the same command again.") from error


def _scale_of(text: str | None) -> float | Literal["unknown"] | None:
    """The value of --um-per-pixel. Raises HemafastError if it is neither a number nor "unknown"."""
    if text is None or text == "unknown":
        return text  # type: ignore[return-value]
    try:
        return float(text)
    except ValueError as error:
        problem = f"--um-per-pixel {text!r} is not a number."
        raise HemafastError(problem, "Give micrometres per pixel, such as 0.1, or unknown.") from error
