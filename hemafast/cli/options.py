"""Options of commands, made from the fields of PrepareConfig and TrainConfig: name, type, default, help and group."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer

from hemafast.config import LABELLED, LEARNING, PRETRAINING, TrainConfig, option_of, parsed
from hemafast.errors import HemafastError
from hemafast.presets import PRESETS

RESUMING = "Resuming"
REPEATING = "Several runs"

_SIMPLE = (bool, int, float, str, Path)

Asked = dict[str, Any]
"""Settings by name that the user has typed, as values of their fields."""

_SHORT_FORMS = {
    "onecycle": ("schedule", "onecycle", "constant"),
    "weighted_loss": ("loss", "weighted", "cross-entropy"),
}
"""Switches by name: the setting, and its value with and without --no-."""


def configured(
    kind: type[Any],
    *,
    fields: Collection[str] | None = None,
    pretrains: bool = False,
    common: Collection[str] | None = None,
    defaults: dict[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., None]]:
    """Give a command an option for each of the `fields` of `kind`, by default for all; its first argument is `Asked`.

    A command that `pretrains` has no options of labels and the classifier, and all others have none of pretraining.
    `--help` shows those that are `common`, by default those that `kind` says are; `--help-all` shows all. `defaults`
    are what the help of this command gives as defaults, where they are not those of `kind`.
    """
    left_out = LABELLED if pretrains else PRETRAINING
    wanted = set(kind.__dataclass_fields__ if fields is None else fields).difference(left_out)
    names = [name for name in kind.__dataclass_fields__ if name in wanted]

    def decorate(command: Callable[..., Any]) -> Callable[..., None]:
        shorts = [name for name, (field, *_) in _SHORT_FORMS.items() if kind is TrainConfig and field in names]

        @wraps(command)
        def run(**given: Any) -> None:
            asked = {name: given.pop(name) for name in names}
            for name in shorts:
                field = _SHORT_FORMS[name][0]
                asked[field] = _long_form(name, given.pop(name), asked[field])
            given.pop("help_all")
            command({name: parsed(kind, name, value) for name, value in asked.items() if value is not None}, **given)

        presets = [preset for preset in PRESETS if ("method" in PRESETS[preset]()) == pretrains]
        made = {name: _annotation(kind, name, common, defaults or {}, presets) for name in names}
        made |= {name: _short_annotation(name, common) for name in shorts}
        own = dict(list(inspect.signature(command, eval_str=True).parameters.items())[1:])
        ordered = _ordered(made)
        parameters = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ordered[name])
            for name in ordered
        ]
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own.values()]
        parameters.append(_help_all(hides=any(_hidden(kind, name, common) for name in names)))
        return with_parameters(run, parameters)

    return decorate


def with_parameters(run: Callable[..., None], parameters: Sequence[inspect.Parameter]) -> Callable[..., None]:
    """`run`, of which typer sees these parameters."""
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {one.name: one.annotation for one in parameters}
    return run


def _ordered(made: dict[str, Any]) -> dict[str, Any]:
    """The options, each short form behind the one that it is short for."""
    behind = {field: name for name, (field, *_) in _SHORT_FORMS.items() if name in made}
    names = [one for name in made if name not in _SHORT_FORMS for one in (name, behind.get(name)) if one]
    return {name: made[name] for name in names}


def _hidden(kind: type[Any], name: str, common: Collection[str] | None) -> bool:
    return not option_of(kind, name).common if common is None else name not in common


def _annotation(
    kind: type[Any],
    name: str,
    common: Collection[str] | None,
    defaults: dict[str, Any],
    presets: Collection[str],
) -> Any:
    option, hint = option_of(kind, name), _typed(kind, name)
    flag = option.flag or f"--{name.replace('_', '-')}"
    if hint is bool and option.flag is None:
        flag = f"{flag}/--no-{flag[2:]}"
    declared = typer.Option(
        *(_flags(name) or [flag]),
        help=f"{option.help} [{_default(kind, name, defaults, presets)}]{_said(presets) if name == 'preset' else ''}",
        show_default=False,  # typer's own takes a line for itself
        rich_help_panel=option.group,
        metavar=option.metavar,
        hidden=_hidden(kind, name, common),
    )
    return Annotated[hint | None, declared]


def _flags(name: str) -> list[str]:
    return ["--domains", "--domain"] if name == "domains" else []


def _typed(kind: type[Any], name: str) -> Any:
    """The type of a setting as typer takes it; what typer knows nothing of is text, which the settings parse."""
    hint = _plain_type(_hints(kind)[name])  # type: ignore[arg-type] # a class is hashable
    if get_origin(hint) is tuple:
        parts = [_plain_type(part) for part in get_args(hint)]
        if option_of(kind, name).metavar == "N,N...|off":
            return str
        if parts[-1] is not Ellipsis:
            return tuple[tuple(parts)]  # type: ignore[misc]
        return list[parts[0] if parts[0] in _SIMPLE else str]  # type: ignore[misc] # typer has no lists of literals
    if get_origin(hint) is dict:
        return list[str]
    return str if option_of(kind, name).parse is not None else _text_or(hint)


def _text_or(hint: Any) -> Any:
    return hint if hint in _SIMPLE or get_origin(hint) is Literal else str


def _plain_type(hint: Any) -> Any:
    """A type without bounds and without None."""
    if get_origin(hint) is Annotated:
        return _plain_type(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        parts = [part for part in get_args(hint) if part is not NoneType]
        return _plain_type(parts[0]) if len(parts) == 1 else hint
    return hint


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _default(kind: type[Any], name: str, defaults: dict[str, Any], presets: Collection[str]) -> str:
    """The default of a setting, and what presets set instead."""
    none = option_of(kind, name).none
    field = kind.__dataclass_fields__[name]
    plain = field.default if field.default_factory is not dict else ()
    if name in defaults:
        return as_typed(defaults[name], none)
    if kind is not TrainConfig:
        return none if none.isupper() or "/" in none else as_typed(plain, none)
    setting: dict[Any, list[str]] = {plain: []}
    for preset in presets:
        setting.setdefault(PRESETS[preset]().get(name, plain), []).append(preset)
    del setting[plain]
    return "; ".join(
        [as_typed(plain, none), *(f"{', '.join(setting[value])}: {as_typed(value, none)}" for value in setting)]
    )


def as_typed(value: Any, none: str = "off") -> str:
    """A value as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value)) or none
    return none if value is None else str(value)


def _said(presets: Collection[str]) -> str:
    """A list of presets with the first line of each docstring."""
    said = {name: (PRESETS[name].__doc__ or "\n").splitlines()[0] for name in presets}
    return "".join(f"\n- {name}: {line}" for name, line in said.items())


def _short_annotation(name: str, common: Collection[str] | None) -> Any:
    field, with_, without = _SHORT_FORMS[name]
    flag = name.replace("_", "-")
    declared = typer.Option(
        f"--{flag}/--no-{flag}",
        help=f"Short for --{field} {with_}, or {without}.",
        rich_help_panel=LEARNING,
        hidden=common is not None and field not in common,
    )
    return Annotated[bool | None, declared]


def _long_form(short: str, given: bool | None, value: Any) -> Any:
    """The value of a setting, by itself or by its short form. Raises HemafastError if both are given and disagree."""
    if given is None:
        return value
    field, with_, without = _SHORT_FORMS[short]
    meant, flag = with_ if given else without, short.replace("_", "-")
    if value not in (None, meant):
        typed = f"--{flag}" if given else f"--no-{flag}"
        raise HemafastError(f"{typed} and --{field} {value} exclude each other.", "Give one of them.")
    return meant


def _help_all(*, hides: bool) -> inspect.Parameter:
    def show(context: typer.Context, asked: bool) -> None:
        if asked:
            for parameter in context.command.params:
                if hasattr(parameter, "hidden"):
                    parameter.hidden = False
            typer.echo(context.get_help())
            raise typer.Exit

    declared = typer.Option(
        "--help-all", callback=show, is_eager=True, help="Show every option and exit.", hidden=not hides
    )
    return inspect.Parameter(
        "help_all", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Annotated[bool, declared]
    )
