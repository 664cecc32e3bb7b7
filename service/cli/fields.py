"""Command-line options from the fields of a pydantic model, so that a setting is described in one place only."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from typing import Annotated, Any, Literal, NoReturn, Union, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from rich.console import Console
from rich.markup import escape

err = Console(stderr=True)


def fail(message: str, *, code: int) -> NoReturn:
    """Says what is wrong on standard error and ends the command."""
    err.print(f"[bold red]camserve:[/] {message}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def with_fields(parameter: str, model: type[BaseModel], *names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command one option per field of `model` (or per field named), with the field's own type and description.

    The command gets an instance of the model as its argument `parameter`. A field not given on the command line is left to the
    model: its default, or an environment variable's value. Values that the model refuses end the command with code 2.
    """
    fields = {name: model.model_fields[name] for name in (names or model.model_fields)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        def run(**given: Any) -> None:
            changed = {name: given.pop(name) for name in fields}
            try:
                made = model(**{name: value for name, value in changed.items() if value is not None})
            except ValidationError as error:
                fail("; ".join(f"--{_flag(fault['loc'])}: {fault['msg']}" for fault in error.errors()), code=2)
            command(**given, **{parameter: made})

        options = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[
                    _asked(field.annotation) | None,
                    typer.Option(
                        help=escape(field.description or ""),
                        show_default=_shown(field.get_default()),
                        rich_help_panel=model.__name__,
                    ),
                ],
            )
            for name, field in fields.items()
        ]
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != parameter]
        run.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined] # Typer reads options off it
        run.__annotations__ = {p.name: p.annotation for p in [*own, *options]}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate


def _asked(annotation: Any) -> Any:
    """The type a command line can ask for: lists are repeated options, unions are words for the model to read."""
    if get_origin(annotation) is Annotated:
        return _asked(get_args(annotation)[0])
    if get_origin(annotation) in {Union, types.UnionType}:
        real = [choice for choice in get_args(annotation) if choice is not type(None)]
        return _asked(real[0]) if len(real) == 1 else str
    if get_origin(annotation) is tuple:
        return list[str]
    return annotation if annotation in {bool, int, float} or get_origin(annotation) is Literal else str


def _shown(default: Any) -> str | bool:
    if isinstance(default, tuple):
        return ", ".join(map(str, default)) or False
    return False if default is None else str(default)


def _flag(location: tuple[int | str, ...]) -> str:
    return str(location[0]).replace("_", "-") if location else "options"
