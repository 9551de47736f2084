"""Options of a build as parameters of a command, made from their one declaration: `BuildOptions`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from mixport.pipeline.options.build_options import BuildOptions
from mixport.pipeline.options.model_options import ModelOptions
from mixport.pipeline.options.shown import PANELS, Shown

Command = Callable[..., Any]


def takes_options(
    kind: type[ModelOptions] = BuildOptions, *, panels: Collection[str] = PANELS
) -> Callable[[Command], Command]:
    """Give a command the options of this record and these panels, behind its context and in front of its own
    parameters.

    Every default is None, so that mixport.toml fills what was not typed; help shows the default that then
    applies. The values are in the context: see `mixport.cli.options.shared.typed`.
    """

    def decorate(command: Command) -> Command:
        own = inspect.signature(command, eval_str=True)
        first, *rest = (one for one in own.parameters.values() if one.kind is not one.VAR_KEYWORD)
        made = [_parameter(name, *declared) for name, declared in declarations(kind, panels).items()]
        parameters = [
            one.replace(kind=inspect.Parameter.KEYWORD_ONLY) if one is not first else one
            for one in (first, *made, *rest)
        ]
        command.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def declarations(
    kind: type[ModelOptions] = BuildOptions, panels: Collection[str] = PANELS
) -> dict[str, tuple[FieldInfo, Shown]]:
    """Every option of these panels by name, in the order of help."""
    found = {
        name: (field, shown)
        for name, field in kind.model_fields.items()
        for shown in field.metadata
        if isinstance(shown, Shown) and shown.panel in panels
    }
    return dict(sorted(found.items(), key=lambda one: PANELS.index(one[1][1].panel)))


def _parameter(name: str, field: FieldInfo, shown: Shown) -> inspect.Parameter:
    kind = _typed(field.annotation)
    default = field.get_default(call_default_factory=True)
    said = shown.default if shown.default is not None else _said(default)
    metavar = shown.metavar
    if get_origin(field.annotation) is Literal:
        metavar = "|".join(map(str, get_args(field.annotation)))
    if shown.argument:
        info: Any = typer.Argument(help=shown.help, metavar=metavar, show_default=said)
    else:
        flag = f"--{name.replace('_', '-')}"
        flags = f"{flag}/--no-{flag[2:]}" if shown.both else flag
        info = typer.Option(
            flags,
            help=shown.help,
            metavar=metavar,
            show_default=said if kind is not bool or shown.both else False,
            rich_help_panel=shown.panel,
        )
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, info]
    )


def _typed(annotation: Any) -> Any:
    """What typer reads: texts where the record itself takes them apart."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (one for one in get_args(annotation) if one is not NoneType)
    origin = get_origin(annotation)
    if (origin is tuple and get_args(annotation)[-1] is Ellipsis) or origin is dict:
        return list[str]
    return str if origin is not None else annotation


def _said(default: object) -> str:
    match default:
        case None:
            return "none"
        case tuple():
            return ",".join(map(str, default)) or "none"  # type: ignore[reportUnknownArgumentType]
        case _:
            return str(default)
